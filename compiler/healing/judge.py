"""Judges the student after each round, as it will be shipped, and keeps the best weights."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from condensec.errors import HealError
from condensec.healing.choice import Choice, Score
from condensec.healing.options import HealOptions, HealResult, Round
from condensec.healing.targets import write_npz
from condensec.healing.training import Training

if TYPE_CHECKING:
    import onnx

    from condensec.data import Samples

_KEPT = ("best", "peak", "start")  # rounds that a choice remembers


class Judge:
    """Scores rounds; remembers the best one on disk, so that a resumed heal knows it.

    Args:
        model: the student as given; its weights are replaced to judge a round.
        training: names and initial values of the trained weights.
        validation: samples to judge by.
        metric: see `condensec.healing.heal.heal`.
        state: folder of the heal.
        options: patience, jobs, batch.
        reference: the teacher's outputs on the validation samples.
        is_enough: see `Choice`.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        training: Training,
        validation: Samples,
        metric: Any,
        state: Path,
        options: HealOptions,
        reference: Mapping[str, np.ndarray],
        is_enough: Callable[[float], bool] | None = None,
    ) -> None:
        self._model, self._training, self._validation = model, training, validation
        self._metric, self._state, self._options = metric, state, options
        self._reference = reference
        self.higher_is_better = bool(getattr(metric, "higher_is_better", True)) if metric else False
        self._sign = 1.0 if self.higher_is_better or metric is None else -1.0
        self._choice = Choice(is_enough, self._sign)
        self._rounds: list[Round] = []
        self._rss = 0.0
        self._load()

    def round(self, event: Mapping[str, Any]) -> Round:
        """Take in a "round" event: score its weights, keep them if they are the best so far."""
        path = Path(event["weights"])
        self._rss = max(self._rss, float(event.get("rss") or 0.0))
        value, samples = self._score(read_weights(path, list(self._training.weights)))
        done = Round(
            number=int(event["number"]),
            epoch=float(event["epoch"]),
            train_loss=event.get("train_loss"),
            validation_loss=float(event["validation_loss"]),
            metric=value,
            seconds=float(event["seconds"]),
        )
        # A worker that was killed before it heard of the answer tells its last round again.
        again = any(r.number == done.number for r in self._rounds)
        self._rounds = [*(r for r in self._rounds if r.number < done.number), done]
        whole = event.get("whole", True)  # else zeros are missing: not what was asked for, however good
        if whole and not again and self._choice.take(self._scored(done, samples)):
            shutil.copyfile(path, self._state / "best.npz.tmp")
            os.replace(self._state / "best.npz.tmp", self._state / "best.npz")
        self._store()
        path.unlink(missing_ok=True)  # last: while it's there, this round isn't done
        return done

    def is_exhausted(self) -> bool:
        """No better round for as long as the caller's patience lasts."""
        patience = self._options.patience
        best = self._choice.best
        return best is not None and 0 < patience <= self._rounds[-1].number - best.number

    def _scored(self, done: Round, samples: np.ndarray | None) -> Score:
        """A round as it is compared with others."""
        value = 0.0 if done.metric is None else self._sign * done.metric
        of_samples = None if samples is None else self._sign * samples
        return Score(
            done.number, value if math.isfinite(value) else -math.inf, done.validation_loss, of_samples
        )

    def _score(self, weights: Mapping[str, np.ndarray]) -> tuple[float | None, np.ndarray | None]:
        """The metric with some weights, and of each sample if it has that."""
        from condensec.runner import Session

        if self._metric is None:
            return None, None
        session = Session(with_weights(self._model, weights), threads=self._options.jobs)
        outputs = session.run_samples(self._validation, batch=self._options.batch)
        if not hasattr(self._metric, "score"):
            return float(self._metric(outputs, self._validation)), None
        value, samples = self._metric.score(outputs, self._validation, self._reference)
        return value, samples

    def result(self, training: Training, end: Mapping[str, Any], seconds: float) -> HealResult:
        """The best round as the result of the heal.

        Raises:
            HealError: not even the first round was judged.
        """
        if self._choice.best is None:
            raise HealError("healing ended before anything was validated")
        number = self._choice.best.number
        first, best = self._rounds[0], next(r for r in self._rounds if r.number == number)
        improved = number > 0
        weights = read_weights(self._state / "best.npz", list(training.weights)) if improved else {}
        use_metric = self._metric is not None
        steps = int(end.get("steps", 0))
        trained = max(float(end.get("seconds", 0.0)), 1e-9)
        return HealResult(
            weights=weights,
            before=float(first.metric if use_metric and first.metric is not None else first.validation_loss),
            after=float(best.metric if use_metric and best.metric is not None else best.validation_loss),
            higher_is_better=self.higher_is_better,
            loss_curve=tuple(self._rounds),
            seconds=seconds,
            steps=steps,
            samples_per_second=float(end.get("rate") or steps * self._options.batch / trained),
            peak_rss_mb=self._rss,
            frozen=training.frozen,
            around=training.around,
            trained_share=training.trained_share,
            lr=end.get("lr"),
            note="; ".join(_notes(training, improved=improved)),
        )

    def _store(self) -> None:
        kept = {name: getattr(self._choice, name) for name in _KEPT}
        samples = {n: one.samples for n, one in kept.items() if one is not None and one.samples is not None}
        write_npz(self._state / "scores.npz", samples)
        doc = {
            "kept": {name: None if one is None else one.number for name, one in kept.items()},
            "rounds": [vars(r) for r in self._rounds],
            "fingerprint": self._fingerprint(),
        }
        temporary = self._state / "judge.json.tmp"
        temporary.write_text(json.dumps(doc), encoding="utf-8")
        os.replace(temporary, self._state / "judge.json")

    def _load(self) -> None:
        """What an earlier, interrupted call knew, if it was about the same job."""
        try:
            doc = json.loads((self._state / "judge.json").read_text(encoding="utf-8"))
            if doc["fingerprint"] != self._fingerprint() or not (self._state / "best.npz").exists():
                return
            rounds = [Round(**r) for r in doc["rounds"]]
            known = {r.number: r for r in rounds}
            with np.load(self._state / "scores.npz", allow_pickle=False) as stored:
                samples = {name: stored[name] for name in stored.files}
            kept = {
                name: None if number is None else self._scored(known[number], samples.get(name))
                for name, number in ((name, doc["kept"][name]) for name in _KEPT)
            }
        except (OSError, ValueError, KeyError, TypeError):
            return
        self._rounds = rounds
        for name, one in kept.items():
            setattr(self._choice, name, one)

    def _fingerprint(self) -> str:
        try:
            request = json.loads((self._state / "request.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return ""
        return str(request.get("fingerprint"))


def _notes(training: Training, *, improved: bool) -> list[str]:
    """What a reader of the result has to know."""
    notes = [] if improved else ["training gave nothing better; the weights stay as they were"]
    if training.around:
        nodes = ", ".join(f"'{node}'" for node, _ in training.around[:3])
        more = f" and {len(training.around) - 3} more" if len(training.around) > 3 else ""
        notes.append(f"healed around {nodes}{more}: {training.around[0][1]}")
    return notes


def read_weights(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Weights of an .npz the worker wrote, by name."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[f"w{i}"] for i, name in enumerate(names)}


def with_weights(model: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A copy of a model with other weights: initializers and Constant nodes, in their own precision."""
    import onnx
    from onnx import numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in weights:
            dtype = numpy_helper.to_array(tensor).dtype
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name].astype(dtype), tensor.name))
    for node in copy.graph.node:
        if node.op_type == "Constant" and node.output[0] in weights:
            for attribute in node.attribute:
                if attribute.name == "value":
                    dtype = numpy_helper.to_array(attribute.t).dtype
                    value = weights[node.output[0]].astype(dtype)
                    attribute.t.CopyFrom(numpy_helper.from_array(value, attribute.t.name))
                elif attribute.name == "value_floats":
                    del attribute.floats[:]
                    attribute.floats.extend(weights[node.output[0]].tolist())
    return copy
