"""The aim is moved to the latency that was asked for, before anything is healed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models import residual_cnn, save, save_samples

from condensec import api
from condensec.errors import PassError
from condensec.passes.widths import Goal, Widths
from condensec.stages import settle

ASKED = 0.6


def shares(job: Any, limits: Any, progress: Any) -> dict[str, float]:
    """What the choice's own sum predicts for an aim."""
    return {
        x.key: float(Widths(job.analysis, [Goal(x.key, x.cost, x.limit)]).at(progress.aim).totals[0])
        / x.dense
        for x in limits
    }


def compress(folder: Path, **more: Any) -> Any:
    path = save(residual_cnn(width=32), folder)
    save_samples(residual_cnn(width=32), folder / "d.npz", 64)
    options = {"budget": [f"latency<={ASKED}x"], "heal": "off", "max_drop": "inf", "jobs": 1, "step": 0.5}
    return api.compress(path, target="mobile-cpu", data=str(folder / "d.npz"), **{**options, **more})


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_an_aim_moves_to_where_it_is_measured_right(
    factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    found: list[Any] = []

    def device(job: Any, means: Any, models: Any, limits: Any, progress: Any) -> dict[str, float]:
        real = {key: factor * share for key, share in shares(job, limits, progress).items()}
        seen.append(max(real.values()))
        return real

    def watched(job: Any, means: Any, steps: Any, models: Any, progress: Any) -> Any:
        found.append(settle_for_real(job, means, steps, models, progress))
        return found[-1]

    settle_for_real = settle.settled
    monkeypatch.setattr(settle, "measured", device)
    monkeypatch.setattr("condensec.pipeline.settled", watched)
    compress(tmp_path)
    assert abs(seen[0] / ASKED - 1) > 0.1  # the first aim trusts the model, and misses
    kept = [share for share in seen if share <= settle.MET * ASKED]
    assert max(kept) == pytest.approx(ASKED, rel=0.05)
    assert len(seen) <= settle.ROUNDS
    assert found[0].correction


def test_what_is_emitted_is_as_slow_as_asked(tmp_path: Path) -> None:
    report = compress(tmp_path)
    ratio = report.targets["mobile-cpu"].ratio
    assert 0.93 * ASKED < ratio <= 1.05 * ASKED
    assert report.status == "ok"


def test_without_a_latency_budget_nothing_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any) -> Any:
        raise AssertionError("measured")

    monkeypatch.setattr(settle, "measured", never)
    assert compress(tmp_path, budget=["macs<=0.7x"]).status == "ok"
    with pytest.raises(PassError, match="measured"):
        compress(tmp_path)
