"""``--pareto N``: which models are on the front, and what is written of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from line_tools import compress

from condensec import io, verify
from condensec.errors import ConfigError, Interrupted
from condensec.passes.groups import analyze
from condensec.plan import read_plan
from condensec.report.model import read_report
from condensec.stages import front
from condensec.stages.state import Candidate, Checkpoints, Progress


def chosen(monkeypatch: pytest.MonkeyPatch, points: list[tuple[float, float]], count: int) -> list[float]:
    """Shares of the MACs that are chosen from (share, points lost)."""
    monkeypatch.setattr(front, "macs_share", lambda job, counts: counts["share"])
    monkeypatch.setattr(front, "_loss", lambda job, one: one.metric)
    candidates = [Candidate({"share": s}, metric=lost) for s, lost in points]  # type: ignore[dict-item]
    return [c.counts["share"] for c in front.front(SimpleNamespace(), candidates, count)]  # type: ignore[arg-type]


def test_a_front_holds_no_model_that_another_beats_and_is_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [(0.9, 0.1), (0.8, 0.3), (0.7, 0.2), (0.6, 0.5), (0.5, 1.0)]
    assert chosen(monkeypatch, points, 9) == [0.9, 0.7, 0.6, 0.5]
    assert chosen(monkeypatch, points, 1) == [0.5]
    assert chosen(monkeypatch, points, 2) == [0.7, 0.5]
    assert chosen(monkeypatch, points[::-1], 2) == [0.7, 0.5]
    assert chosen(monkeypatch, [], 3) == []
    worse = [(0.9, 0.5), (0.5, 0.1)]
    assert chosen(monkeypatch, worse, 5) == [0.5]


def test_models_along_the_way_are_written_proven_and_told(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = compress(model, out, data=data, budget="macs<=0.4x", step=0.1, pareto=3)
    assert read_report(out / "report.json") == report
    assert [p.n for p in report.pareto] == list(range(1, len(report.pareto) + 1))
    assert 2 <= len(report.pareto) <= 3
    sizes = [p.macs for p in report.pareto]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    assert sizes[-1] == report.after.macs
    assert [p.metric_validation for p in report.pareto] == sorted(
        (p.metric_validation for p in report.pareto), reverse=True
    )
    original = io.load(model)
    feeds = {"input": np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)}
    for point in report.pareto:
        folder = out / "pareto" / f"{point.n:02d}"
        assert point.file == f"pareto/{point.n:02d}/mobile-cpu/model.onnx"
        cut = io.load(folder / "model.onnx")
        found = analyze(cut)
        assert found.macs() == point.macs
        assert sum(v.const_value.size for v in found.model.graph.initializers.values()) == point.params
        assert verify.check(original, read_plan(folder / "plan.json"), cut, feeds).passed
        ort.InferenceSession(str(out / point.file))
        assert point.verified == report.targets["mobile-cpu"].latency_how
        assert 0 < point.ratio <= 1
    last = out / "pareto" / f"{len(sizes):02d}" / "model.onnx"
    for a, b in zip(
        onnx.load(last).graph.initializer, onnx.load(out / "model.onnx").graph.initializer, strict=True
    ):
        assert a.raw_data == b.raw_data


def test_an_older_front_goes_and_without_the_option_there_is_none(
    model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    many = compress(model, out, data=data, budget="macs<=0.3x", pareto=9)
    assert len(many.pareto) < 9
    assert any("--pareto 9" in note for note in many.notes)
    assert (out / "pareto" / "01").is_dir()
    plain = compress(model, out, data=data, budget="macs<=0.3x")
    assert not plain.pareto
    assert not (out / "pareto").exists()


def test_a_killed_run_resumes_with_its_front(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"data": data, "budget": "macs<=0.4x", "pareto": 3}
    whole = compress(model, tmp_path / "a", **options)
    save_checkpoint = Checkpoints.save

    def killed(self: Checkpoints, progress: Progress) -> None:
        save_checkpoint(self, progress)
        if len(progress.cycles) == 3:
            raise Interrupted("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed)
        with pytest.raises(Interrupted):
            compress(model, tmp_path / "b", **options)
    again = compress(model, tmp_path / "b", resume=True, **options)
    assert again.pareto == whole.pareto
    for point in whole.pareto:
        assert (tmp_path / "a" / point.file).read_bytes() == (tmp_path / "b" / point.file).read_bytes()


@pytest.mark.parametrize("options", [{"keep": 0.5}, {"step": 1}, {"pareto": 0}, {"patterns": "2:4"}])
def test_a_front_needs_cycles(options: dict[str, Any], model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pareto|units out"):
        compress(model, tmp_path / "out", **{"pareto": 2, **options})
