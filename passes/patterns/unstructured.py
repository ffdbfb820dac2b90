"""Unstructured zeros: single weights go, wherever they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from condensec.passes import surgeon
from condensec.passes.effects import energies
from condensec.passes.patterns import Layer, Zeros, finished, pattern
from condensec.sparsity import Sparsity

FloatArray = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
MOST = 0.99  # zeros of one layer, at most (or the asked share, where that is more)


@pattern("unstructured")
def unstructured(layers: Sequence[Layer], asked: Sparsity) -> dict[str, Zeros]:
    """The cheapest weights go.

    - ``obs``: SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774), the others make up for them. The layers
      share the zeros by magnitude over their own mean square.
    - ``wanda`` (Sun et al. 2023, arXiv:2306.11695): ``|W|`` times the norm of the input, row by row.
    - ``magnitude``: by ``|W|``, all layers ranked together; ``layerwise``: the same share in every layer.
    - ``erk``: layers share them by their shapes, see `by_shape`; within each as ``obs``, or by ``|W|``.
    - ``sensitivity``: the layers share the zeros by what they do to the outputs (`condensec.passes.effects`);
      within each as ``obs``, or by ``|W|`` without data.
    """
    shared, within = methods(layers, asked)
    found = shared_out(layers, asked.share, shared, lambda layer: ranked(layer, shared))
    return {layer.place.weight: _of(layer, found[layer.place.weight], within) for layer in layers}


def methods(layers: Sequence[Layer], asked: Sparsity) -> tuple[str, str]:
    """How zeros are shared between layers, and how they are chosen within each."""
    default = "obs" if any(layer.moments is not None for layer in layers) else "magnitude"
    method = asked.method or default
    return method, default if method in ("sensitivity", "erk") else method


def shared_out(
    layers: Sequence[Layer], share: float, method: str, prices: Callable[[Layer], FloatArray]
) -> dict[str, float]:
    """Share of zeros of each layer, by a method; ``prices`` are those of a layer's weights or blocks."""
    if method in ("layerwise", "wanda"):
        return {layer.place.weight: share for layer in layers}
    if method == "erk":
        return by_shape(layers, share)
    return shares(layers, [prices(layer).ravel() for layer in layers], share)


def by_shape(layers: Sequence[Layer], share: float) -> dict[str, float]:
    """Share of zeros of each layer by the sum of its dims over their product: narrow layers keep more.

    The Erdos-Renyi kernel of Evci et al. 2020 (arXiv:1911.11134): weights that stay grow with the sum of a
    layer's input channels, output channels and kernel sides, not with their product. Layers that would keep
    more than all of theirs keep all.
    """
    sizes = np.array([layer.weight.size for layer in layers], np.float64)
    sums = np.array([sum(layer.weight.shape) for layer in layers], np.float64)
    stay = np.zeros(len(layers))
    open_, left = np.ones(len(layers), np.bool_), (1 - share) * sizes.sum()
    while open_.any():
        stay[open_] = left * sums[open_] / sums[open_].sum()
        full = open_ & (stay > sizes)
        if not full.any():
            break
        stay[full] = sizes[full]
        left -= sizes[full].sum()
        open_ &= ~full
    return {x.place.weight: float(1 - n / size) for x, n, size in zip(layers, stay, sizes, strict=True)}


def ranked(layer: Layer, method: str) -> FloatArray:
    """What a layer's weights cost when all layers are ranked together, ``[groups, rows, columns]``."""
    if method == "sensitivity":
        return energies(layer) * layer.effect
    prices = np.square(layer.matrix.astype(np.float64))
    return prices / max(float(prices.mean()), 1e-30) if method == "obs" else prices


def shares(layers: Sequence[Layer], prices: list[FloatArray], share: float) -> dict[str, float]:
    """Share of zeros of each layer when these prices, of weights or of blocks, are ranked together."""
    total = sum(p.size for p in prices)
    count = round(share * total)
    gone = [0] * len(prices)
    open_, left = list(range(len(prices))), count
    while open_ and left > 0:  # layers that reach the most are closed, the others take what they can't
        every = np.concatenate([prices[i] for i in open_])
        edge = np.partition(every, left - 1)[left - 1] if left <= every.size else np.inf
        full = []
        for i in open_:
            gone[i] = int((prices[i] <= edge).sum())
            limit = int(max(MOST, share) * prices[i].size)
            if gone[i] > limit:
                gone[i] = limit
                full.append(i)
        if not full:
            break
        open_ = [i for i in open_ if i not in full]
        left = count - sum(gone[i] for i in range(len(prices)) if i not in open_)
    return {layer.place.weight: gone[i] / max(1, prices[i].size) for i, layer in enumerate(layers)}


def cheapest(prices: FloatArray, share: float) -> Bools:
    """False at this share of the entries, the cheapest; of equals the first go."""
    count = round(share * prices.size)
    stay = np.ones(prices.size, np.bool_)
    stay[np.argsort(prices.ravel(), kind="stable")[:count]] = False
    return stay.reshape(prices.shape)


def _of(layer: Layer, share: float, method: str) -> Zeros:
    matrix = layer.matrix
    moment = layer.full if method == "obs" else None
    if moment is not None:
        new, stay = np.empty(matrix.shape), np.empty(matrix.shape, np.bool_)
        for g, part in enumerate(matrix):
            new[g], stay[g] = surgeon.solve(part, surgeon.factor(moment[g]), lambda p, _: cheapest(p, share))
        return finished(layer, stay, new, moment)
    squares = layer.squares if method in ("obs", "wanda") else None
    prices = np.square(matrix.astype(np.float64))
    if squares is None:
        return finished(layer, cheapest(prices, share), matrix, None)
    prices = (prices * squares[:, None, :]).reshape(-1, prices.shape[-1])
    stay = (
        np.stack([cheapest(row, share) for row in prices]) if method == "wanda" else cheapest(prices, share)
    )
    return finished(layer, stay.reshape(matrix.shape), matrix, squares)
