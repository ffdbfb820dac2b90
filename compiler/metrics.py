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

from condensec import scores
from condensec.data.load import import_callable
from condensec.data.types import Samples, Signature
from condensec.errors import CondensecError, ConfigError, DataError
from condensec.scores import Outputs, PerSample, Scores

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
        return self.score(outputs, samples, reference)[1]

    def value(self, outputs: Outputs, samples: Samples, reference: Outputs | None = None) -> float:
        """The metric as one number: the mean over samples, or what the user's metric gives.

        Raises:
            DataError: as `per_sample`.
        """
        return self.score(outputs, samples, reference)[0]

    def score(
        self, outputs: Outputs, samples: Samples, reference: Outputs | None = None
    ) -> tuple[float, Scores | None]:
        """`value` and `per_sample` at once: the metric is computed, or the user's called, a single time."""
        found = (
            self._own(outputs, samples) if self.compute is None else self.compute(outputs, samples, reference)
        )
        return float(np.mean(found)), found if found.ndim else None

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

    Without ``spec``: top1 if there are class labels and the first output is ``[N, C]``, or class numbers in
    the labels' shape; otherwise fidelity to the original, which is agreement if the first output looks like
    class scores or is whole numbers, and cosine if not.

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
    decides = signature.decides
    if labels is not None and labels.dtype.kind in "iu":
        if decides and labels.ndim == len(signature.outputs[0].shape):
            return "top1"
        if classes is not None and labels.ndim == 1:
            return "top1"
    return "agreement" if decides or (classes is not None and classes <= MOST_CLASSES) else "cosine"


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


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("top1", "top-1 accuracy", proportion=True, needs_labels=True, compute=scores.top(1)),
        Metric("top5", "top-5 accuracy", proportion=True, needs_labels=True, compute=scores.top(5)),
        Metric(
            "agreement",
            "same class as the original",
            proportion=True,
            needs_reference=True,
            compute=scores.agreement,
        ),
        Metric("cosine", "cosine similarity to the original", needs_reference=True, compute=scores.cosine),
        Metric(
            "mse",
            "mean squared error",
            higher_is_better=False,
            unit_points=1.0,
            needs_reference=True,
            compute=scores.mse,
        ),
        Metric(
            "kl",
            "KL divergence from the original",
            higher_is_better=False,
            unit_points=1.0,
            needs_reference=True,
            compute=scores.kl,
        ),
    )
}
