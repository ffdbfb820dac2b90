"""How the minutes of training are spread over cycles, and over what comes after them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from condensec.config import configure
from condensec.data import Samples
from condensec.stages.minutes import Minutes
from condensec.stages.state import Candidate, Progress


def minutes(**options: Any) -> Minutes:
    train = Samples(inputs={"x": np.zeros((64, 3), np.float32)})
    job = SimpleNamespace(
        config=configure(model="m.onnx", **{"heal": "minutes=10", **options}),
        data=SimpleNamespace(splits=SimpleNamespace(train=train), synthetic=False),
        analysis=SimpleNamespace(macs=lambda: 10**6),
        points_lost=lambda metric: 1.0 - metric,
    )
    return Minutes(job)  # type: ignore[arg-type]


def spent(one: Minutes, cycles: int, endangered: bool = True) -> tuple[Progress, list[float]]:
    """Progress after so many cycles that used all they were allowed, and the seconds of each."""
    progress, seconds = Progress(safe=Candidate(metric=0.5)), []
    for left in range(cycles, 0, -1):
        allowed = one.allowance(progress, cycles_left=left, last=left == 1, endangered=endangered) or 0.0
        progress = replace(progress, heal_seconds=progress.heal_seconds + allowed)
        seconds.append(allowed)
    return progress, seconds


@pytest.mark.parametrize("cycles", [1, 3, 8])
def test_all_minutes_are_used_and_no_more_and_the_last_cycle_gets_most(cycles: int) -> None:
    one = minutes()
    progress, seconds = spent(one, cycles)
    rest = one.polish_seconds(progress) or 0.0
    assert sum(seconds) + rest == pytest.approx(600)
    assert seconds[-1] > sum(seconds[:-1])
    assert rest < seconds[-1]
    assert sum(spent(one, cycles, endangered=False)[1][:-1]) == 0


def test_zeros_after_cycles_get_a_share_of_their_own() -> None:
    plain, both = minutes(), minutes(patterns="channels,2:4")
    assert plain.seconds_left(spent(plain, 3)[0], 1.0) == pytest.approx(0.2 * 450, rel=0.35)
    progress, seconds = spent(both, 3)
    left = both.seconds_left(progress, 1.0)
    assert left is not None
    assert left >= 0.4 * 600
    assert left + sum(seconds) == pytest.approx(600)


def test_by_epochs_there_is_nothing_to_share_out() -> None:
    one = minutes(heal="epochs=3")
    assert one.allowance(Progress(), cycles_left=1, last=True, endangered=False) == float("inf")
    assert one.allowance(Progress(), cycles_left=3, last=False, endangered=False) is None
    assert one.polish_seconds(Progress()) is None


@pytest.mark.parametrize(
    ("max_drop", "qat", "kept"),
    [(1.0, "auto", True), ("inf", "auto", False), ("inf", "on", True), (1.0, "off", False)],
)
def test_minutes_for_int8_are_kept_where_it_may_be_trained(max_drop: Any, qat: str, kept: bool) -> None:
    one = minutes(quantize="int8", max_drop=max_drop, heal=f"minutes=10,quantized=0.2,qat={qat}")
    progress, seconds = spent(one, 1)
    assert sum(seconds) + (one.polish_seconds(progress) or 0.0) == pytest.approx(480 if kept else 600)
    assert one.trains_quantized == kept
