"""Zeros in a pattern: a run that is stopped on the way goes on there, and comes to the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from line_tools import compress

from condensec.errors import Interrupted
from condensec.healing import Thin
from condensec.passes import patterns
from condensec.passes.patterns import Zeros
from condensec.stages import finish, zeros
from condensec.stages.heal import Healed, Healer
from condensec.stages.job import Job
from condensec.stages.kept import Kept, Standing, Try

FILES = ("model.onnx", "plan.json", "mobile-cpu/model.onnx")
# search -> what is asked for: zeros while training, then a share by bisection; a share; a number of layers
ASKED: dict[str, dict[str, Any]] = {
    "gradual": {"patterns": "unstructured=0.97:magnitude", "heal": "minutes=0.4", "max_drop": 10.0},
    "share": {"patterns": "channels,unstructured=0.9:magnitude", "heal": "epochs=1", "max_drop": 5.0},
    "layers": {"patterns": "1:8:magnitude", "heal": "epochs=1", "max_drop": 10.0},
}


class Counted:
    """Counts what is computed, and is stopped at one call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.stop: tuple[str, int] | None = None
        get, judge, emit = patterns.get, Job.judge, finish.emit_all
        monkeypatch.setattr(patterns, "get", lambda name: self.seen("pattern", get(name)))
        monkeypatch.setattr(Job, "judge", self.seen("judge", judge))
        monkeypatch.setattr(finish, "emit_all", self.seen("emit", emit))
        monkeypatch.setattr(Healer, "train", self.seen("train", shrunk))
        monkeypatch.setattr(zeros, "LEAST_SECONDS", 2.0)

    def seen(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if self.stop == (name, self.calls.count(name)):
                raise KeyboardInterrupt
            self.calls.append(name)
            return function(*args, **more)

        return call


def shrunk(
    healer: Healer, cut: Any, weights: Any, seconds: float, zeros: Any = (), thin: Thin | None = None
) -> Healed:
    """In place of a training: always the same, and it takes half of the time it may."""
    small = {name: weights[name] * np.float32(0.97) for name in zeros}
    for name, count in (thin.counts if thin else {}).items():
        value = weights.get(name, cut.model.graph.initializers[name].const_value.numpy()).copy()
        value.flat[np.argsort(np.abs(value), axis=None, kind="stable")[:count]] = 0
        small[name] = value
    return Healed(small, how="shrunk", gradient_seconds=min(seconds, 2.0) / 2)


@pytest.mark.parametrize("search", ASKED)
def test_a_stopped_search_goes_on_and_comes_to_the_same(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: str
) -> None:
    options = {**ASKED[search], "data": data}
    counted = Counted(monkeypatch)
    whole = compress(model, tmp_path / "whole", **options)
    usual = list(counted.calls)
    (wanted,) = whole.patterns
    assert usual.count("pattern") >= (1 if search == "layers" else 4)
    assert usual.count("train") >= 3
    trains, judges = usual.count("train"), usual.count("judge")
    for name, at in (("train", 1), ("train", trains // 2 + 1), ("judge", judges - 1)):
        out = tmp_path / f"{name}{at}"
        counted.calls, counted.stop = [], (name, at)
        with pytest.raises(Interrupted):
            compress(model, out, **options)
        before = list(counted.calls)
        counted.calls, counted.stop = [], None
        (found,) = compress(model, out, resume=True, **options).patterns
        for file in FILES:
            assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), (name, at)
        assert found == wanted
        assert before.count("train") + counted.calls.count("train") == trains
        # at most the step that was under way is begun anew
        assert before.count("pattern") + counted.calls.count("pattern") <= usual.count("pattern") + 2
        assert counted.calls.count("emit") == 1
        assert not (out / "state").exists()


def test_what_was_found_of_other_weights_is_not_used(tmp_path: Path) -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = Try(
        {"w": Zeros(weight > 2, weight * (weight > 2), 0.25)}, {"w": weight, "b": weight[0]}, 0.5, "x"
    )
    standing = Standing(gradual=True, current=found, tries=3, low=0.1, high=0.7, best=found, heal_seconds=1.5)
    kept = Kept(tmp_path / "zeros", "key")
    assert kept.standing() is None
    kept.save(standing)
    assert len(list((tmp_path / "zeros").glob("*.npz"))) == 1, "one try is one file"
    read = Kept(tmp_path / "zeros", "key").standing()
    assert read is not None
    assert read.best is not None
    assert (read.gradual, read.tries, read.low, read.high, read.heal_seconds) == (True, 3, 0.1, 0.7, 1.5)
    assert np.array_equal(read.best.zeros["w"].mask, weight > 2)
    assert np.array_equal(read.best.weights["w"], weight)
    assert (read.best.metric, read.best.how, read.best.zeros["w"].damage) == (0.5, "x", 0.25)
    assert Kept(tmp_path / "zeros", "another").standing() is None
    kept.save(replace(standing, current=None, best=None))
    assert not list((tmp_path / "zeros").glob("*.npz")), "what nothing points to is gone"
    (tmp_path / "zeros" / "standing.json").write_text("{}")
    assert kept.standing() is None
