"""The measuring protocol: claims only what the interval allows, in both directions."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from model_tools import random_feeds, save, with_batch
from models import residual_cnn, transformer_encoder

from condensec.errors import ConfigError, DataError
from condensec.hardware import bench, protocol
from condensec.hardware.protocol import Protocol, Spread

QUICK = Protocol(pairs=30, min_seconds=0.1, max_seconds=6.0)


def test_a_model_against_itself_is_no_difference() -> None:
    model = residual_cnn(width=32)
    feeds = random_feeds(model, 4)
    result = bench.compare(model, model, feeds, protocol=replace(QUICK, min_seconds=0.5))
    assert 0.9 < result.ratio < 1.1
    assert result.ci95[0] <= result.ratio <= result.ci95[1]
    assert result.ci95[0] < 1.05
    assert result.ci95[1] > 0.95
    assert result.pairs >= 30


def test_a_ten_times_larger_model_is_slower_and_the_other_way_round_faster() -> None:
    small, large = residual_cnn(width=16), residual_cnn(width=96)
    there = bench.compare(small, large, random_feeds(small, 4), protocol=QUICK)
    back = bench.compare(large, small, random_feeds(small, 4), protocol=QUICK)
    assert there.verdict == "slower"
    assert there.ratio > 3
    assert back.verdict == "faster"
    assert back.ratio < 1 / 3
    assert there.b.model_bytes > there.a.model_bytes


def test_the_interval_decides_not_the_point() -> None:
    one = bench.measure(residual_cnn(), random_feeds(residual_cnn()), protocol=QUICK)
    base = bench.Comparison(one, one, 0.9, (0.8, 1.01), (0.9, 0.8, 1.01), (0.9, 0.8, 1.01), "wall", 30)
    assert base.verdict == "no difference"
    assert replace(base, ci95=(0.8, 0.99)).verdict == "faster"
    assert replace(base, ci95=(1.001, 1.2)).verdict == "slower"


def test_interleaving_is_abba_and_warm_up_is_not_counted() -> None:
    order: list[str] = []

    def call(name: str) -> None:
        order.append(name)
        time.sleep(0.001)

    settings = Protocol(discard=3, pairs=6, min_seconds=0.0, sample_seconds=1e-9)
    clocked = protocol.interleave([lambda: call("a"), lambda: call("b")], settings)
    assert order[:6] == ["a"] * 3 + ["b"] * 3
    assert "".join(order[6:]) == "abba" * 3
    assert clocked.wall.shape == (6, 2)
    assert clocked.wall.min() >= 0.001
    assert clocked.cpu.max() < clocked.wall.min()  # sleeping costs no CPU time


def test_time_is_bounded_above() -> None:
    settings = Protocol(discard=1, pairs=1000, min_seconds=100.0, max_seconds=0.05)
    start = time.perf_counter()
    clocked = protocol.interleave([lambda: time.sleep(0.002)], settings)
    assert time.perf_counter() - start < 2
    assert 5 <= len(clocked.wall) < 1000


def test_bootstrap_covers_the_median_and_is_seeded() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(100):
        median, low, high = protocol.bootstrap(np.exp(rng.normal(0, 0.2, 31)), trial)
        inside += low <= 1.0 <= high
        assert low <= median <= high
    assert 88 <= inside <= 100
    values = rng.random(30)
    assert protocol.bootstrap(values, 1) == protocol.bootstrap(values, 1)
    assert protocol.bootstrap(values + 1, 1) != protocol.bootstrap(values, 1)
    spread = Spread.of(np.arange(1.0, 102.0))
    assert (spread.min, spread.median, spread.p90, spread.p99) == (1, 51, 91, 100)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the OS has no affinity")
def test_affinity_is_restored_even_after_an_error() -> None:
    before = os.sched_getaffinity(0)

    def crash() -> None:
        with protocol.pinned(1) as cores:
            assert cores is not None
            assert os.sched_getaffinity(0) == set(cores)
            assert len(cores) == 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        crash()
    assert os.sched_getaffinity(0) == before
    with protocol.pinned(1, wanted=False) as cores:
        assert cores is None
        assert os.sched_getaffinity(0) == before


def test_a_disturbed_machine_is_judged_by_cpu_time() -> None:
    one = bench.measure(residual_cnn(), protocol=QUICK)
    quiet, busy = Spread(1, 1, 1, 1), Spread(1, 2, 3, 4)
    assert replace(one, wall=quiet, cpu=quiet).basis == "wall"
    assert replace(one, wall=busy, cpu=quiet).basis == "cpu"
    assert replace(one, wall=busy, cpu=quiet).seconds == 1
    many = replace(one.environment, threads=2)
    assert replace(one, wall=quiet, cpu=busy, environment=many).basis == "wall"


def test_the_measurement_says_where_and_how(tmp_path: Path) -> None:
    path = save(transformer_encoder(), tmp_path)
    shapes = {"input_ids": (2, 6), "attention_mask": (2, 6)}
    one = bench.measure(path, shapes=shapes, protocol=QUICK)
    doc = json.loads(json.dumps(one.to_json()))
    assert doc["bytes"] == path.stat().st_size
    assert doc["runs"] >= 30
    assert doc["environment"]["provider"] == "CPUExecutionProvider"
    assert doc["wall"]["min_ms"] <= doc["wall"]["median_ms"] <= doc["wall"]["p99_ms"]
    assert doc["first_run_ms"] > 0
    assert doc["session_creation_ms"] > 0
    assert one.command.startswith("onnxruntime_perf_test -I -e cpu")
    assert one.command.endswith(str(path))
    assert " -f N:2" in one.command


def test_feeds_fit_the_model(tmp_path: Path) -> None:
    assert bench.make_feeds(with_batch(residual_cnn(), 4))["input"].shape == (4, 3, 16, 16)
    assert bench.make_feeds(residual_cnn())["input"].shape == (1, 3, 16, 16)
    with pytest.raises(ConfigError, match="disagree about the batch"):
        bench.make_feeds(with_batch(residual_cnn(), 4), {"input": (2, 3, 16, 16)})
    with pytest.raises(DataError):
        bench.make_feeds(residual_cnn(), {"input": (2, 4, 16, 16)})


def test_bytes_count_the_weights_beside_the_model(tmp_path: Path) -> None:
    model = residual_cnn()
    inside = bench.model_bytes(model)
    path = tmp_path / "m.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="m.data", size_threshold=16)
    both = path.stat().st_size + (tmp_path / "m.data").stat().st_size
    assert bench.model_bytes(path) == both
    assert path.stat().st_size < inside / 2


def test_an_unknown_provider_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no 'MagicExecutionProvider' here; it has .*CPU"):
        bench.measure(residual_cnn(), protocol=replace(QUICK, providers=("MagicExecutionProvider",)))
    with pytest.raises(ConfigError):
        Protocol(pairs=1)
