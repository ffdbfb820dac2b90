"""The aim of the cycles: floors, vital groups, and choices that are tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import residual_cnn, save, save_samples

from condensec import pipeline
from condensec.config import configure
from condensec.passes.sensitivity import Curve, Sensitivity
from condensec.stages import aims, finish, goals, job
from condensec.stages.job import Job
from condensec.stages.means import Means
from condensec.stages.state import Candidate, Progress
from condensec.stages.steps import Steps


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(residual_cnn(), tmp_path)
    save_samples(residual_cnn(), tmp_path / "d.npz", count=400)
    return tmp_path


def prepared(folder: Path, **options: Any) -> tuple[Job, Means, Steps]:
    """Everything that is known before the first cycle."""
    given = {"target": "mobile-cpu", "heal": "off", "max_drop": "inf", "align": 1, "jobs": 1, **options}
    config = configure(
        model=folder / "model.onnx", output=folder / "out", data=str(folder / "d.npz"), **given
    )
    steps = Steps()
    targets = job.find_targets(config)
    loaded = job.load_model(config)
    data = job.read_data(config, loaded)
    analysis = job.find_groups(config, loaded, data)
    work = job.measure_baseline(config, loaded, data, targets, analysis)
    models = goals.latency_models(work)
    return work, pipeline._means(work, finish.budgets(work, models), steps), steps


def curves(work: Job, heights: Mapping[str, float], power: float = 2.0) -> Sensitivity:
    """A loss that grows with a power of the share that is gone, by group."""
    found = {}
    for g in work.analysis.groups:
        gone = np.arange(g.size) / g.size
        loss = heights.get(g.id, 1.0) * gone**power
        found[g.id] = Curve(tuple(range(g.size, 0, -1)), tuple(float(x) for x in loss))
    return Sensitivity(found, 1, 0.0)


@pytest.mark.parametrize(
    ("budget", "modelled"),
    [
        ({"budget": "params<=0.8x"}, ["mobile-cpu"]),
        ({"keep": 0.5}, ["mobile-cpu"]),
        ({"budget": ["macs<=0.8x", "latency<=0.8x"]}, ["host", "mobile-cpu"]),
        ({}, ["host", "mobile-cpu"]),
    ],
)
def test_nodes_are_timed_only_for_latency(folder: Path, budget: dict[str, Any], modelled: list[str]) -> None:
    """What can be measured here needs no model of its latency, unless one is asked for (or by default)."""
    work, _, _ = prepared(folder, target=["host", "mobile-cpu"], **budget)
    assert sorted(goals.latency_models(work)) == modelled


def test_no_group_goes_below_an_eighth_unless_the_budget_wants_it(folder: Path) -> None:
    work, means, steps = prepared(folder, budget="macs<=0.2x")
    cheap = work.analysis.groups[0]
    means = replace(means, sensitivity=curves(work, {cheap.id: 1e-6}))
    aim = aims.aimed(work, means, steps, Progress()).aim
    assert aim[cheap.id] == -(-cheap.size // 8), "what costs nothing goes as far as it may"
    assert all(8 * aim[g.id] >= g.size for g in work.analysis.groups)
    work, tight, steps = prepared(folder, budget="macs<=0.004x")
    tight = replace(tight, sensitivity=means.sensitivity)
    aim = aims.aimed(work, tight, steps, Progress()).aim
    assert any(n < g.size / 8 for g, n in ((g, aim[g.id]) for g in work.analysis.groups))


def test_a_vital_group_stays_whole_where_it_can(folder: Path) -> None:
    work, means, steps = prepared(folder, budget="macs<=0.7x")
    vital = work.analysis.groups[1]
    losses = dict(curves(work, {}).curves)
    losses[vital.id] = Curve((vital.size, vital.size - 2, 1), (0.0, 0.6, 0.7))  # flat behind its first step
    means = replace(means, sensitivity=Sensitivity(losses, 1, 0.0))
    assert aims.aimed(work, means, steps, Progress()).aim[vital.id] == vital.size
    mild = dict(losses)
    mild[vital.id] = Curve((vital.size, vital.size - 2, 1), (0.0, 1e-4, 2e-4))
    means = replace(means, sensitivity=Sensitivity(mild, 1, 0.0))
    assert aims.aimed(work, means, steps, Progress()).aim[vital.id] < vital.size
    work, tight, steps = prepared(folder, budget="macs<=0.02x")
    tight = replace(tight, sensitivity=Sensitivity(losses, 1, 0.0))
    assert aims.aimed(work, tight, steps, Progress()).aim[vital.id] < vital.size


def test_the_choice_with_the_smallest_tried_loss_is_the_aim(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aims, "MOST", 12)
    work, means, steps = prepared(folder, budget="macs<=0.5x")
    spared = work.analysis.groups[-1]
    tried: dict[tuple[int, ...], float] = {}

    def loss(self: Any, counts: Mapping[str, int]) -> float:
        """What no curve knows: everything hangs on the last group."""
        found = 1 - counts[spared.id] / spared.size
        tried[self._key(counts)] = self.losses[self._key(counts)] = found
        return found

    monkeypatch.setattr(aims._Search, "loss", loss)
    found = aims.aimed(work, means, steps, Progress())
    assert 4 < len(tried) <= 12
    assert 1 - found.aim[spared.id] / spared.size == min(tried.values())
    assert min(tried.values()) < next(iter(tried.values())), "the first was the best: nothing was searched"
    assert f"among {len(tried)} ways" in found.note
    assert aims.aimed(work, means, steps, Progress()).aim == found.aim, "not the same twice"
    assert aims.aimed(work, means, steps, found) is found, "an aim is chosen once"
    again = aims.aimed(work, means, steps, replace(found, aim={}, best=Candidate(found.aim)))
    assert all(again.aim[name] <= n for name, n in found.aim.items()), "what is gone can't come back"


def test_nothing_is_tried_where_nothing_has_to_be_cut(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Mapping[str, int]] = []
    real = aims._Search.loss

    def loss(search: aims._Search, counts: Mapping[str, int]) -> float:
        tried.append(counts)
        return real(search, counts)

    monkeypatch.setattr(aims._Search, "loss", loss)
    work, means, steps = prepared(folder, budget="macs<=1x")
    aim = aims.aimed(work, means, steps, Progress()).aim
    assert aim == {g.id: g.size for g in work.analysis.groups}
    assert not tried
    work, means, steps = prepared(folder, budget="macs<=0.5x")
    aims.aimed(work, means, steps, Progress())
    assert tried, "the control: it is tried where there is a choice"


def test_tried_losses_are_those_after_repair(folder: Path) -> None:
    work, means, steps = prepared(folder, budget="macs<=0.4x", heal="closed-form")
    room = aims._room(work, means, Progress())
    search = aims._Search(work, means, room, steps)
    counts = room.descent.counts
    repaired = search.loss(counts)
    raw = aims._Search(*prepared(folder, budget="macs<=0.4x")[:2], room, steps).loss(counts)
    assert repaired < 0.7 * raw
    assert not np.isin(search.judged.inputs["input"], search.repair.inputs["input"]).all()


def test_more_minutes_more_choices_and_never_by_the_clock(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aims, "MOST", 10**6)
    counts = []
    for heal in ("minutes=1", "minutes=10"):
        work, means, _ = prepared(folder, budget="macs<=0.5x", heal=heal)
        some = work.data.splits.calibration
        counts.append(aims.evaluations(work, means, some, some))
        assert aims.evaluations(work, means, some, some) == counts[-1]
    assert counts[1] / counts[0] == pytest.approx((20 + 60) / (20 + 6), rel=0.02)
