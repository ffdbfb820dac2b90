"""Judges the student after each round, as it will be shipped, and keeps the best weights."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from condensec.errors import HealError
from condensec.healing.options import HealOptions, HealResult, Round
from condensec.healing.training import Training

if TYPE_CHECKING:
    import onnx

    from condensec.data import Samples


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
    ) -> None:
        self._model, self._training, self._validation = model, training, validation
        self._metric, self._state, self._options = metric, state, options
        self._reference = reference
        self.higher_is_better = bool(getattr(metric, "higher_is_better", True)) if metric else False
        self._rounds: list[Round] = []
        self._best = -1
        self._rss = 0.0
        self._load()

    def _key(self, done: Round) -> tuple[float, float]:
        """Larger is better: the metric, and the loss where the metric can't tell two rounds apart."""
        if done.metric is None or not math.isfinite(done.metric):
            return (-math.inf if self._metric else 0.0, -done.validation_loss)
        return (done.metric if self.higher_is_better else -done.metric, -done.validation_loss)

    def round(self, event: Mapping[str, Any]) -> Round:
        """Take in a "round" event: score its weights, keep them if they are the best so far."""
        path = Path(event["weights"])
        self._rss = max(self._rss, float(event.get("rss") or 0.0))
        score = self._score(read_weights(path, list(self._training.weights))) if self._metric else None
        done = Round(
            number=int(event["number"]),
            epoch=float(event["epoch"]),
            train_loss=event.get("train_loss"),
            validation_loss=float(event["validation_loss"]),
            metric=score,
            seconds=float(event["seconds"]),
        )
        # A worker that was killed before it heard of the answer tells its last round again.
        self._rounds = [r for r in self._rounds if r.number < done.number]
        self._best = min(self._best, len(self._rounds) - 1)
        self._rounds.append(done)
        whole = event.get("whole", True)  # else zeros are missing: not what was asked for, however good
        if whole and (self._best < 0 or self._key(done) > self._key(self._rounds[self._best])):
            self._best = len(self._rounds) - 1
            shutil.copyfile(path, self._state / "best.npz.tmp")
            os.replace(self._state / "best.npz.tmp", self._state / "best.npz")
        self._store()
        path.unlink(missing_ok=True)  # last: while it's there, this round isn't done
        return done

    def is_exhausted(self) -> bool:
        """No better round for as long as the caller's patience lasts."""
        patience = self._options.patience
        return self._best >= 0 and 0 < patience <= len(self._rounds) - 1 - self._best

    def _score(self, weights: Mapping[str, np.ndarray]) -> float:
        from condensec.runner import Session

        session = Session(with_weights(self._model, weights), threads=self._options.jobs)
        outputs = session.run_samples(self._validation, batch=self._options.batch)
        if hasattr(self._metric, "value"):
            return float(self._metric.value(outputs, self._validation, self._reference))
        return float(self._metric(outputs, self._validation))

    def result(self, training: Training, end: Mapping[str, Any], seconds: float) -> HealResult:
        """The best round as the result of the heal.

        Raises:
            HealError: not even the first round was judged.
        """
        if self._best < 0:
            raise HealError("healing ended before anything was validated")
        first, best = self._rounds[0], self._rounds[self._best]
        improved = self._best > 0
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
        doc = {
            "best": self._best,
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
            if doc["fingerprint"] == self._fingerprint() and (self._state / "best.npz").exists():
                self._rounds = [Round(**r) for r in doc["rounds"]]
                self._best = int(doc["best"])
        except (OSError, ValueError, KeyError, TypeError):
            self._rounds, self._best = [], -1

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
