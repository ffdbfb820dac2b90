"""Blocks of zeros: of 1 x w consecutive weights along the contraction all go, or none (Gray 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from condensec.passes import surgeon
from condensec.passes.patterns import Layer, Zeros, finished, pattern
from condensec.passes.patterns.unstructured import cheapest, methods, ranked, shared_out
from condensec.sparsity import Sparsity

FloatArray = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@pattern("blocks")
def blocks(layers: Sequence[Layer], asked: Sparsity) -> dict[str, Zeros]:
    """The cheapest blocks go; methods as for single weights, with the price of a block the sum of its own."""
    fit = [layer for layer in layers if layer.place.size % asked.width == 0]
    shared, within = methods(fit, asked)
    parts = shared_out(fit, asked.share, shared, lambda layer: joined(ranked(layer, shared), asked.width))
    return {layer.place.weight: _of(layer, parts[layer.place.weight], asked.width, within) for layer in fit}


def joined(prices: FloatArray, width: int) -> FloatArray:
    """Sums over ``width`` consecutive columns: ``[..., columns / width]``."""
    return np.asarray(prices.reshape(*prices.shape[:-1], -1, width).sum(axis=-1))


def best(prices: FloatArray, share: float, width: int) -> Bools:
    """False in this share of the blocks, the cheapest ones."""
    return np.asarray(np.repeat(cheapest(joined(prices, width), share), width, axis=-1))


def _of(layer: Layer, share: float, width: int, method: str) -> Zeros:
    matrix = layer.matrix
    moment = layer.full if method == "obs" else None
    if moment is not None:
        new, stay = np.empty(matrix.shape), np.empty(matrix.shape, np.bool_)
        step = max(1, surgeon.BLOCK // width) * width
        for g, part in enumerate(matrix):
            new[g], stay[g] = surgeon.solve(
                part, surgeon.factor(moment[g]), lambda p, _: best(p, share, width), step
            )
        return finished(layer, stay, new, moment)
    squares = layer.squares if method in ("obs", "wanda") else None
    prices = np.square(matrix.astype(np.float64))
    if squares is not None:
        prices = prices * squares[:, None, :]
    return finished(layer, best(prices, share, width), matrix, squares)
