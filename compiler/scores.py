"""Scores per sample ``[N]``: what the built-in metrics make of outputs, labels and the original's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from condensec.data.fit import check_classes
from condensec.data.types import Array, Samples, is_decision
from condensec.errors import DataError

Outputs = Mapping[str, Array]
Scores = npt.NDArray[np.float64]
PerSample = Callable[[Outputs, Samples, "Outputs | None"], Scores]


def _first(outputs: Outputs, name: str) -> Array:
    """The first output as class scores ``[N, C]``."""
    key, scores = next(iter(outputs.items()))
    if scores.ndim > 2 and all(d == 1 for d in scores.shape[2:]):
        scores = scores.reshape(scores.shape[:2])
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise DataError(
            f"metric {name} needs class scores [N, C], but output '{key}' has shape {scores.shape}",
            node=key,
            hint="choose --metric cosine, mse or module:callable",
        )
    return scores


def _same(ours: Array, wanted: Array, what: str) -> Scores:
    """Share of each sample's decisions that are as they should be."""
    if ours.shape != wanted.shape:
        raise DataError(f"{what} has shape {ours.shape}, compared with {wanted.shape}")
    return np.asarray((ours == wanted).reshape(len(ours), -1).mean(axis=1), np.float64)


def top(k: int) -> PerSample:
    """1 where the label is among the ``k`` highest class scores of the first output.

    Top 1 of an output of class numbers is the share of them that are the labels'.
    """

    def hits(outputs: Outputs, samples: Samples, reference: Outputs | None) -> Scores:
        name = f"top{k}"
        key, first = next(iter(outputs.items()))
        if k == 1 and is_decision(first.dtype, first.shape) and samples.labels is not None:
            return _same(first, samples.labels, f"metric {name}: output '{key}'")
        scores, labels = _first(outputs, name), samples.labels
        if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise DataError(f"metric {name} needs one class number a sample in 'labels'")
        check_classes(labels, scores.shape[1], f"{samples.source}: array 'labels'", next(iter(outputs)))
        own = scores[np.arange(len(scores)), labels][:, None]
        # As many as k-1 other classes may score higher. Ties go to the lower class number, like argmax.
        earlier = np.arange(scores.shape[1]) < labels[:, None]
        better = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
        finite = np.isfinite(scores).all(axis=1)  # a broken output is no hit
        return np.asarray((better < k) & finite, np.float64)

    return hits


def _target(outputs: Outputs, samples: Samples, reference: Outputs | None, name: str) -> Outputs:
    target = samples.outputs if samples.outputs is not None else reference
    if target is None:
        raise DataError(f"metric {name} needs the original's outputs")
    shared = {key: value for key, value in target.items() if key in outputs}
    if not shared:
        raise DataError(f"metric {name}: none of the outputs {list(outputs)} are among {list(target)}")
    return shared


def agreement(outputs: Outputs, samples: Samples, reference: Outputs | None) -> Scores:
    """1 where the first output's highest class is the original's.

    Of an output of whole numbers, class numbers or a mask: the share of them that are the original's.
    """
    key = next(iter(outputs))
    target = _target({key: outputs[key]}, samples, reference, "agreement")
    if is_decision(outputs[key].dtype, outputs[key].shape):
        return _same(outputs[key], target[key], f"metric agreement: output '{key}'")
    ours, theirs = _first(outputs, "agreement"), _first(target, "agreement")
    finite = np.isfinite(ours).all(axis=1)
    return np.asarray((ours.argmax(axis=1) == theirs.argmax(axis=1)) & finite, np.float64)


def _pairs(
    outputs: Outputs, samples: Samples, reference: Outputs | None, name: str
) -> list[tuple[Scores, Scores]]:
    """Matching outputs as ``[N, everything else]`` in double precision."""
    pairs = []
    for key, theirs in _target(outputs, samples, reference, name).items():
        ours = outputs[key]
        if ours.shape != theirs.shape:
            raise DataError(
                f"metric {name}: output '{key}' has shape {ours.shape}, compared with {theirs.shape}",
                node=key,
            )
        rows = len(samples)
        if theirs.shape[:1] != (rows,):
            raise DataError(
                f"metric {name}: axis 0 of output '{key}' isn't the sample axis",
                node=key,
                hint="choose --metric module:callable, a function (outputs, samples) -> float",
            )
        pairs.append((ours.reshape(rows, -1).astype(np.float64), theirs.reshape(rows, -1).astype(np.float64)))
    return pairs


def cosine(outputs: Outputs, samples: Samples, reference: Outputs | None) -> Scores:
    """Cosine with the original's, mean over outputs; two zero vectors are alike, one is like nothing."""
    scores = []
    for ours, theirs in _pairs(outputs, samples, reference, "cosine"):
        with np.errstate(all="ignore"):
            norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
            cosine = (ours * theirs).sum(axis=1) / norms
        both_zero = ~ours.any(axis=1) & ~theirs.any(axis=1)
        scores.append(np.where(both_zero, 1.0, np.where(np.isfinite(cosine), cosine, 0.0)))
    return np.asarray(np.mean(scores, axis=0), np.float64)


def mse(outputs: Outputs, samples: Samples, reference: Outputs | None) -> Scores:
    """Mean squared error, over all elements of an output, then over outputs; infinite for a broken one."""
    scores = []
    for ours, theirs in _pairs(outputs, samples, reference, "mse"):
        with np.errstate(all="ignore"):
            error = np.square(ours - theirs).mean(axis=1)
        scores.append(np.where(np.isnan(error), np.inf, error))
    return np.asarray(np.mean(scores, axis=0), np.float64)


def kl(outputs: Outputs, samples: Samples, reference: Outputs | None) -> Scores:
    """KL divergence from the original's class distribution to ours, in nats; first output, last axis."""
    key = next(iter(outputs))
    theirs = _target({key: outputs[key]}, samples, reference, "kl")[key]
    ours = outputs[key]
    if ours.shape != theirs.shape or ours.ndim < 2:
        raise DataError(f"metric kl: output '{key}' has shape {ours.shape}, compared with {theirs.shape}")
    probabilities = _are_probabilities(theirs)
    p, q = _log_probabilities(theirs, probabilities), _log_probabilities(ours, probabilities)
    with np.errstate(all="ignore"):
        divergence = (np.exp(p) * (p - q)).sum(axis=-1).reshape(len(ours), -1).mean(axis=1)
    return np.where(np.isnan(divergence), np.inf, np.maximum(divergence, 0.0))


def _are_probabilities(scores: Array) -> bool:
    return bool((scores >= 0).all() and np.allclose(scores.sum(axis=-1), 1.0, atol=1e-2))


def _log_probabilities(scores: Array, probabilities: bool) -> Scores:
    scores = scores.astype(np.float64)
    if probabilities:
        return np.asarray(np.log(np.maximum(scores, 1e-12)))
    with np.errstate(all="ignore"):
        shifted = scores - scores.max(axis=-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
