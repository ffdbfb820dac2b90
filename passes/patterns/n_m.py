"""N:M: of every m consecutive weights along the contraction n stay (Mishra 2021, arXiv:2104.08378)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from condensec.passes import surgeon
from condensec.passes.patterns import Layer, Zeros, finished, pattern
from condensec.sparsity import Sparsity

Bools = npt.NDArray[np.bool_]


@pattern("n_m")
def n_m(layers: Sequence[Layer], asked: Sparsity) -> dict[str, Zeros]:
    """The best n of every m by price; by OBS the weights that are left make up for those that went."""
    return {layer.place.weight: _of(layer, asked) for layer in layers if layer.place.size % asked.m == 0}


def best(prices: npt.NDArray[np.float64], n: int, m: int) -> Bools:
    """Which n of every m consecutive columns cost most to remove; of equals the first stay."""
    groups = prices.reshape(len(prices), -1, m)
    order = np.argsort(-groups, axis=-1, kind="stable")
    stay = np.zeros(groups.shape, np.bool_)
    np.put_along_axis(stay, order[..., :n], True, axis=-1)
    return stay.reshape(prices.shape)


def _of(layer: Layer, asked: Sparsity) -> Zeros:
    matrix = layer.matrix
    moment = layer.full if asked.method in ("", "obs") else None
    if moment is not None:
        new, stay = np.empty(matrix.shape), np.empty(matrix.shape, np.bool_)
        block = max(1, surgeon.BLOCK // asked.m) * asked.m
        for g, part in enumerate(matrix):
            new[g], stay[g] = surgeon.solve(
                part, surgeon.factor(moment[g]), lambda p, _: best(p, asked.n, asked.m), block
            )
        return finished(layer, stay, new, moment)
    squares = layer.squares if asked.method != "magnitude" else None
    prices = np.square(matrix.astype(np.float64))
    if squares is not None:
        prices = prices * squares[:, None, :]
    stay = best(prices.reshape(-1, prices.shape[-1]), asked.n, asked.m).reshape(prices.shape)
    return finished(layer, stay, matrix, squares)
