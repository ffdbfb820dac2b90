"""Least-squares systems of layers: one for each group of a weight, one for layers that share a weight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from condensec.healing import solve


def together(problems: list[solve.Problem], biases: list[np.ndarray]) -> solve.Problem:
    """One problem of several that have the weight in common; what each of them adds to it is given."""
    offsets = [
        bias + (np.zeros_like(p.y) if p.offset is None else p.offset)
        for p, bias in zip(problems, biases, strict=True)
    ]
    return solve.Problem(
        np.concatenate([p.x for p in problems]),
        np.concatenate([p.y - bias for p, bias in zip(problems, biases, strict=True)]),
        np.concatenate([p.held for p in problems]),
        all(p.rectified for p in problems),
        np.concatenate(offsets).astype(np.float32),
    )


def judged(problem: solve.Problem, matrix: np.ndarray, fits: list[solve.Fit]) -> list[solve.Fit]:
    """Fits with other weights, their error measured anew on the held-out rows."""
    held = solve.rows_where(problem.held)
    found = []
    for g, fit in enumerate(fits):
        part = _group(problem, g, matrix)
        error = part.error(part.x[held] @ matrix[g] + fit.bias, held)
        found.append(replace(fit, weight=matrix[g], after=error))
    return found


def _group(problem: solve.Problem, g: int, matrix: np.ndarray) -> solve.Problem:
    """One group's part of a problem."""
    _, features, outputs = matrix.shape
    columns = slice(g * outputs, (g + 1) * outputs)
    offset = None if problem.offset is None else problem.offset[:, columns]
    x = problem.x[:, g * features : (g + 1) * features]
    return solve.Problem(x, problem.y[:, columns], problem.held, problem.rectified, offset)


def solved(problem: solve.Problem, matrix: np.ndarray, bias: np.ndarray, free: bool) -> list[solve.Fit]:
    """One fit for each group of the weight."""
    groups, _, outputs = matrix.shape
    return [
        solve.fit(
            _group(problem, g, matrix), matrix[g], bias[g * outputs : (g + 1) * outputs], free_bias=free
        )
        for g in range(groups)
    ]
