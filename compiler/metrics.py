"""Metrics: how good a model's outputs are, on labels or beside the original's outputs.

Loss of quality is counted in *points* (``--max-drop``). For shares and similarities, which lie in [0, 1]
(top1, top5, agreement, cosine), a point is 0.01: ``--max-drop 0.5`` is half a percentage point. For mse and
kl a point is 1 in the metric's own unit. A callable of the user's counts as a share where higher is better,
unless it has the attributes ``unit_points`` (points per unit) and ``higher_is_better``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.data.fit import check_classes
from condensec.data.load import import_callable
from condensec.data.types import Array, Samples, Signature
from condensec.errors import CondensecError, ConfigError, DataError

Outputs = Mapping[str, Array]
Scores = npt.NDArray[np.float64]
PerSample = Callable[[Outputs, Samples, "Outputs | None"], Scores]

MOST_CLASSES = 100_000  # a wider [N, C] output isn't taken for class scores
_RESAMPLES = 2000
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: as given to ``--metric``.
        label: in a reader's words.
        higher_is_better: whether more is better.
        unit_points: points per unit of the value (100 for shares).
        proportion: every sample counts 0 or 1.
        needs_labels: it compares with ``Samples.labels``.
        needs_reference: it compares with the original's outputs.
        compute: the outputs' score per sample, or None if the metric only has a value of the whole.
        whole: value of all outputs together, for metrics of the user's that give one number.
    """

    name: str
    label: str
    higher_is_better: bool = True
    unit_points: float = 100.0
    proportion: bool = False
    needs_labels: bool = False
    needs_reference: bool = False
    compute: PerSample | None = None
    whole: Callable[[Outputs, Samples], Any] | None = None

    def per_sample(
        self, outputs: Outputs, samples: Samples, reference: Outputs | None = None
    ) -> Scores | None:
        """Scores ``[N]``, or None if the metric has only a value of the whole.

        Args:
            outputs: the model's, by name, axis 0 = sample.
            samples: what the outputs were computed from.
            reference: the original's outputs, for metrics that need them. If the samples came with
                outputs of their own, those are compared with instead.

        Raises:
            DataError: labels or outputs don't fit the metric, or the user's metric failed.
        """
        if self.compute is not None:
            return self.compute(outputs, samples, reference)
        result = self._own(outputs, samples)
        return result if result.ndim else None

    def value(self, outputs: Outputs, samples: Samples, reference: Outputs | None = None) -> float:
        """The metric as one number: the mean over samples, or what the user's metric gives.

        Raises:
            DataError: as `per_sample`.
        """
        if self.compute is not None:
            return float(np.mean(self.compute(outputs, samples, reference)))
        return float(np.mean(self._own(outputs, samples)))

    def points_lost(self, before: float, after: float) -> float:
        """How many points ``after`` is worse than ``before``; negative = better."""
        sign = 1.0 if self.higher_is_better else -1.0
        return sign * (before - after) * self.unit_points

    def _own(self, outputs: Outputs, samples: Samples) -> Scores:
        """The user's metric, checked."""
        assert self.whole is not None
        try:
            result = np.asarray(self.whole(dict(outputs), samples), np.float64)
        except CondensecError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise DataError(
                f"metric {self.name} failed: {type(error).__name__}: {' '.join(str(error).split())}",
                hint="it's called with (outputs: dict of arrays, samples)",
            ) from error
        if result.ndim > 1 or (result.ndim == 1 and len(result) != len(samples)):
            raise DataError(
                f"metric {self.name} gave shape {result.shape}", hint="give one number, or one a sample"
            )
        if np.isnan(result).any():
            raise DataError(f"metric {self.name} gave NaN")
        return result


def resolve(spec: str | Callable[..., Any] | None, samples: Samples, signature: Signature) -> Metric:
    """The metric to use.

    Without ``spec``: top1 if there are class labels and the first output is ``[N, C]``; otherwise fidelity
    to the original, which is agreement if the first output looks like class scores and cosine if not.

    Raises:
        ConfigError: no such metric; names the nearest.
        DataError: the metric needs labels, or an ``[N, C]`` output, and there are none.
    """
    if callable(spec):
        return _users(spec, getattr(spec, "__qualname__", type(spec).__name__))
    if spec is None:
        return METRICS[_default(samples, signature)]
    if ":" in spec:
        return _users(import_callable(spec, "--metric"), spec)
    if spec not in METRICS:
        near = difflib.get_close_matches(spec, METRICS, 1, 0.5)
        raise ConfigError(
            f"unknown metric '{spec}'",
            hint=(f"did you mean '{near[0]}'? " if near else "")
            + f"known: {', '.join(METRICS)}, module:callable",
        )
    metric = METRICS[spec]
    if metric.needs_labels and samples.labels is None:
        where = "there is no --data" if samples.synthetic else f"{samples.source} has none"
        raise DataError(
            f"metric {spec} needs labels, and {where}",
            hint="add an array 'labels' with one class number a sample",
        )
    return metric


def _default(samples: Samples, signature: Signature) -> str:
    classes = signature.classes
    labels = samples.labels
    if labels is not None and classes is not None and labels.ndim == 1 and labels.dtype.kind in "iu":
        return "top1"
    return "agreement" if classes is not None and classes <= MOST_CLASSES else "cosine"


def _users(function: Callable[..., Any], name: str) -> Metric:
    return Metric(
        name=name,
        label=name,
        higher_is_better=bool(getattr(function, "higher_is_better", True)),
        unit_points=float(getattr(function, "unit_points", 100.0)),
        whole=function,
    )


def interval(scores: Scores, *, proportion: bool = False, seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean of scores ``[N]``.

    Wilson's score interval (1927) for proportions, otherwise a seeded percentile bootstrap.
    """
    scores = np.asarray(scores, np.float64)
    n = len(scores)
    if proportion:
        mean, z2 = float(scores.mean()), _Z95**2
        centre = (mean + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z95 / (1 + z2 / n) * float(np.sqrt(mean * (1 - mean) / n + z2 / (4 * n * n)))
        return max(0.0, centre - half), min(1.0, centre + half)
    if n == 1 or not np.isfinite(scores).all():
        return float(scores.min()), float(scores.max())
    rng = np.random.default_rng(seed)
    means = np.array([scores[rng.integers(0, n, n)].mean() for _ in range(_RESAMPLES)])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


# -- the metrics ------------------------------------------------------------------------------------


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


def _top(k: int) -> PerSample:
    def hits(outputs: Outputs, samples: Samples, reference: Outputs | None) -> Scores:
        name = f"top{k}"
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


def _agreement(outputs: Outputs, samples: Samples, reference: Outputs | None) -> Scores:
    key = next(iter(outputs))
    target = _target({key: outputs[key]}, samples, reference, "agreement")
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
            raise DataError(f"metric {name}: axis 0 of output '{key}' isn't the sample axis", node=key)
        pairs.append((ours.reshape(rows, -1).astype(np.float64), theirs.reshape(rows, -1).astype(np.float64)))
    return pairs


def _cosine(outputs: Outputs, samples: Samples, reference: Outputs | None) -> Scores:
    """Mean over outputs; two zero vectors are alike, one zero vector is like nothing."""
    scores = []
    for ours, theirs in _pairs(outputs, samples, reference, "cosine"):
        with np.errstate(all="ignore"):
            norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
            cosine = (ours * theirs).sum(axis=1) / norms
        both_zero = ~ours.any(axis=1) & ~theirs.any(axis=1)
        scores.append(np.where(both_zero, 1.0, np.where(np.isfinite(cosine), cosine, 0.0)))
    return np.asarray(np.mean(scores, axis=0), np.float64)


def _mse(outputs: Outputs, samples: Samples, reference: Outputs | None) -> Scores:
    """Mean squared error, over all elements of an output, then over outputs; infinite for a broken one."""
    scores = []
    for ours, theirs in _pairs(outputs, samples, reference, "mse"):
        with np.errstate(all="ignore"):
            error = np.square(ours - theirs).mean(axis=1)
        scores.append(np.where(np.isnan(error), np.inf, error))
    return np.asarray(np.mean(scores, axis=0), np.float64)


def _kl(outputs: Outputs, samples: Samples, reference: Outputs | None) -> Scores:
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


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("top1", "top-1 accuracy", proportion=True, needs_labels=True, compute=_top(1)),
        Metric("top5", "top-5 accuracy", proportion=True, needs_labels=True, compute=_top(5)),
        Metric(
            "agreement",
            "same class as the original",
            proportion=True,
            needs_reference=True,
            compute=_agreement,
        ),
        Metric("cosine", "cosine similarity to the original", needs_reference=True, compute=_cosine),
        Metric(
            "mse",
            "mean squared error",
            higher_is_better=False,
            unit_points=1.0,
            needs_reference=True,
            compute=_mse,
        ),
        Metric(
            "kl",
            "KL divergence from the original",
            higher_is_better=False,
            unit_points=1.0,
            needs_reference=True,
            compute=_kl,
        ),
    )
}
