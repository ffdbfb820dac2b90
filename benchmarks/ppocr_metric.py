"""Exact match for the PP-OCRv4 recogniser: greedy CTC decoding, given to condensec as `--metric`.

    condensec REC.onnx --metric ppocr_metric:exact_match ...

The labels are the characters' indices, [N, L], filled up with 0 (CTC's blank, which is no character).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLANK = 0


def characters(metadata: str) -> list[str]:
    """The recogniser's alphabet: blank, the `character` entry of the model's metadata, space."""
    return ["", *metadata.splitlines(), " "]


def encode(texts: Sequence[str], alphabet: Sequence[str], length: int) -> NDArray[np.int64]:
    """Texts to indices [N, length], filled up with 0.

    Raises:
        KeyError: a character that the alphabet doesn't have.
    """
    index = {c: i for i, c in reversed(list(enumerate(alphabet)))}
    out = np.zeros((len(texts), length), np.int64)
    for row, text in zip(out, texts, strict=True):
        row[: len(text)] = [index[c] for c in text]
    return out


def greedy(scores: NDArray[Any], space: int) -> list[tuple[int, ...]]:
    """CTC's best path: most likely index per step, repeats and blanks dropped; no space at either end.

    Args:
        scores: [N, steps, classes].
        space: index of the space character. The recogniser answers a wide left margin with a space.
    """
    best = scores.argmax(axis=-1)
    new = np.concatenate([np.ones_like(best[:, :1], bool), best[:, 1:] != best[:, :-1]], axis=1)
    lines = []
    for path, keep in zip(best, new & (best != BLANK), strict=True):
        line = path[keep].tolist()
        while line and line[0] == space:
            line.pop(0)
        while line and line[-1] == space:
            line.pop()
        lines.append(tuple(line))
    return lines


def hits(scores: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.bool_]:
    """For each line whether every character is right; the space is the last class of `scores`."""
    wanted = [tuple(row[row != BLANK].tolist()) for row in labels]
    return np.array([a == b for a, b in zip(greedy(scores, scores.shape[-1] - 1), wanted, strict=True)])


def exact_match(outputs: Mapping[str, NDArray[Any]], samples: Any) -> NDArray[np.float64]:
    """One score a line, 0 or 1. condensec calls it with the model's outputs and the samples."""
    return hits(next(iter(outputs.values())), samples.labels).astype(np.float64)
