"""Healing by training, with the real worker: it gets better, never worse, and its failures stay its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from healing_tools import Setting, noisy
from onnx import TensorProto, helper, numpy_helper

from condensec.data import Samples
from condensec.errors import ConfigError, HealError
from condensec.healing import HealOptions, environment
from condensec.metrics import METRICS

posix = pytest.mark.skipif(os.name == "nt", reason="uses signals and shell scripts")


@pytest.fixture(scope="module", autouse=True)
def worker() -> Path:
    """The worker's environment, made for real once."""
    return environment.ensure()


@pytest.mark.parametrize(
    "build", [models.depthwise_se_cnn, models.transformer_encoder], ids=lambda f: f.__name__
)
def test_a_disturbed_student_learns_its_teacher(tmp_path: Path, build: Any) -> None:
    teacher = build()
    setting = Setting(tmp_path, teacher, noisy(teacher))
    raw = setting.student.read_bytes()
    lines: list[tuple[float, str]] = []
    result = setting.heal(
        METRICS["top1"], lambda share, text: lines.append((share, text)), epochs=6, batch=32
    )
    assert result.after > result.before + 0.1
    assert setting.accuracy(result.weights) == pytest.approx(result.after)
    assert result.trained_share == 1.0
    assert result.steps == 6 * 16
    assert result.loss_curve[-1].validation_loss < 0.8 * result.loss_curve[0].validation_loss
    assert result.samples_per_second > 0
    assert result.peak_rss_mb > 0
    # the user's graph is as it was; what comes back fits it
    assert setting.student.read_bytes() == raw
    shapes = {t.name: tuple(t.dims) for t in setting.model.graph.initializer}
    assert all(w.shape == shapes[name] and np.isfinite(w).all() for name, w in result.weights.items())
    assert not setting.state.exists()
    shares = [share for share, _ in lines]
    assert max(shares) == 1.0
    assert any("validation" in text for _, text in lines)


def test_without_labels_and_metric_the_validation_loss_decides(tmp_path: Path) -> None:
    teacher = models.mlp()
    setting = Setting(tmp_path, teacher, noisy(teacher))
    setting.train = Samples(setting.train.inputs)
    setting.validation = Samples(setting.validation.inputs)
    result = setting.heal(epochs=5, batch=32)
    assert not result.higher_is_better
    assert result.after < 0.5 * result.before


def test_constant_node_weights_fixed_batch_and_frozen_names(tmp_path: Path) -> None:
    teacher = models.as_constant_nodes(models.with_batch(models.mlp(), 16))
    student = models.as_constant_nodes(models.with_batch(noisy(models.mlp()), 16))
    setting = Setting(tmp_path, teacher, student)
    result = setting.heal(epochs=3, freeze="^fc0")
    assert result.weights
    assert not [name for name in result.weights if name.startswith("fc0")]
    assert {"fc0.weight", "fc0.bias"} <= {name for name, reason in result.frozen if "user" in reason}
    assert result.after < result.before


@pytest.mark.parametrize(("batch", "jobs"), [(None, 2), (None, 3), (4, 1), (4, 2)])
def test_a_batch_in_parts_trains_like_a_whole_one(tmp_path: Path, batch: int | None, jobs: int) -> None:
    """Shared out over threads, or one part after another (a model of fixed batch size): the same steps."""
    teacher = models.mlp()
    student = noisy(teacher)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    settings: dict[str, Any] = {"epochs": 1.0, "batch": 24, "jobs": 1, "lr": 8e-3}
    expected = Setting(whole, teacher, student, 96).heal(**settings)
    if batch:
        teacher, student = models.with_batch(teacher, batch), models.with_batch(student, batch)
    found = Setting(parts, teacher, student, 96).heal(**{**settings, "jobs": jobs})
    assert found.steps == expected.steps == 4
    for name, weights in expected.weights.items():
        np.testing.assert_allclose(found.weights[name], weights, rtol=1e-3, atol=1e-5, err_msg=name)


def test_what_a_frozen_node_reads_is_frozen(tmp_path: Path) -> None:
    teacher = models.mlp()
    setting = Setting(tmp_path, teacher, noisy(teacher), count=64)
    reads = {n.name: set(n.input) for n in setting.model.graph.node if "fc1" in n.name}
    assert reads
    result = setting.heal(epochs=2, lr=0.01, freeze="fc1")
    weights = {t.name for t in setting.model.graph.initializer}
    assert not (set().union(*reads.values()) & weights).intersection(result.weights)
    assert set(result.weights)


def test_a_perfect_student_is_left_alone(tmp_path: Path) -> None:
    setting = Setting(tmp_path, models.mlp(), models.mlp())
    result = setting.heal(METRICS["top1"], epochs=1, lr=0.3)
    assert dict(result.weights) == {}
    assert result.before == result.after == 1.0
    assert "nothing better" in result.note


def test_a_diverging_run_is_rolled_back(tmp_path: Path) -> None:
    teacher = models.mlp()
    setting = Setting(tmp_path, teacher, noisy(teacher))
    said: list[str] = []
    result = setting.heal(progress=lambda share, text: said.append(text), epochs=6, lr=1e30, optimizer="sgd")
    assert any("diverged" in text for text in said)
    assert result.after <= result.before
    assert all(np.isfinite(w).all() for w in result.weights.values())


def test_a_time_budget_is_kept(tmp_path: Path) -> None:
    teacher = models.depthwise_se_cnn()
    setting = Setting(tmp_path, teacher, noisy(teacher))
    result = setting.heal(minutes=0.15, batch=32)
    assert result.seconds == pytest.approx(9.0, abs=2.0)
    assert result.after < result.before


def _shoot(share: float, text: str) -> None:
    if "epoch 2.00" in text:
        _kill_children()


@posix
@pytest.mark.parametrize("metric", [None, METRICS["cosine"]], ids=["loss", "cosine"])
def test_killed_worker_costs_the_call_and_the_next_call_goes_on(tmp_path: Path, metric: Any) -> None:
    teacher = models.depthwise_se_cnn()
    setting = Setting(tmp_path, teacher, noisy(teacher))
    straight = setting.heal(metric, epochs=4, batch=32)
    with pytest.raises(HealError, match=r"killed|signal|no longer"):
        setting.heal(metric, epochs=4, batch=32, progress=_shoot)
    assert setting.state.exists()
    said: list[str] = []
    result = setting.heal(metric, epochs=4, batch=32, progress=lambda share, text: said.append(text))
    assert any("going on from step 32" in text for text in said)
    assert [r.number for r in result.loss_curve] == list(range(5))
    assert result.after == pytest.approx(straight.after, rel=1e-3)


@posix
@pytest.mark.parametrize("lost", ["judge.json", "scores.npz"])
def test_a_heal_that_lost_its_record_goes_on_with_the_rounds_to_come(tmp_path: Path, lost: str) -> None:
    teacher = models.depthwise_se_cnn()
    setting = Setting(tmp_path, teacher, noisy(teacher))
    with pytest.raises(HealError, match=r"killed|signal|no longer"):
        setting.heal(METRICS["cosine"], epochs=4, batch=32, progress=_shoot)
    (setting.state / lost).unlink()
    result = setting.heal(METRICS["cosine"], epochs=4, batch=32)
    assert [r.number for r in result.loss_curve] in ([3, 4], [2, 3, 4])
    assert result.weights
    assert result.after >= result.before


def _kill_children() -> None:
    for pid in _children(os.getpid()):
        os.kill(pid, signal.SIGKILL)


def _children(parent: int) -> list[int]:
    listing = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, text=True
    )
    return [int(line.split()[0]) for line in listing.stdout.splitlines() if "heal_worker" in line]


@posix
def test_worker_ends_with_its_parent(tmp_path: Path) -> None:
    teacher = models.depthwise_se_cnn()
    setting = Setting(tmp_path, teacher, noisy(teacher))
    np.savez(tmp_path / "x.npz", **setting.train.inputs)
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        import numpy as np
        from condensec.data import Samples
        from condensec.healing import HealOptions, heal
        folder = Path(sys.argv[1])
        samples = Samples(dict(np.load(folder / "x.npz")))
        heal(folder / "s.onnx", folder / "t.onnx", samples, samples, HealOptions(epochs=1000),
             state=folder / "state", progress=lambda share, text: print(text, flush=True))
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        for line in parent.stdout:
            if "on validation" in line and "epoch 0.00" not in line:
                break
        workers = _children(parent.pid)
        assert len(workers) == 1
        parent.kill()
        parent.stdout.read()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _alive(workers[0]):
        time.sleep(0.1)
    assert not _alive(workers[0])


def _alive(pid: int) -> bool:
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    ).stdout.strip()
    return bool(state) and not state.startswith("Z")


def _fake_python(folder: Path, body: str, worker: Path) -> Path:
    """A Python that answers questions as the real one and runs `body` instead of the worker."""
    path = folder / "python3.11"
    path.write_text(f'#!/bin/sh\ncase "$*" in *heal_worker*) {body};; esac\nexec "{worker}" "$@"\n')
    path.chmod(0o755)
    return path


@posix
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo 'Traceback: the reason' >&2; exit 3", "exit code 3.*the reason"),
        ("exec sleep 60", "no sign of life for 1 s"),
        ("kill -9 $$", "out of memory"),
        (
            'echo \'{"event": "failed", "message": "out of memory"}\'; exit 4',
            "out of memory; heal with a smaller",
        ),
        ("echo not json; exit 0", "exit code 0"),
    ],
    ids=["crash", "hang", "killed", "memory", "silent"],
)
def test_a_failing_worker_is_one_line(
    tmp_path: Path, body: str, words: str, worker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = environment._probe(str(worker))
    assert real is not None
    fake = _fake_python(tmp_path, body, worker)
    monkeypatch.setattr(
        environment, "find_python", lambda: environment.Interpreter(fake, real.version, trains=True)
    )
    setting = Setting(tmp_path, models.mlp(), noisy(models.mlp()))
    begun = time.monotonic()
    with pytest.raises(HealError, match=words) as caught:
        setting.heal(epochs=1, stall=1)
    assert time.monotonic() - begun < 30
    assert "\n" not in str(caught.value)


def test_what_has_no_gradient_is_frozen_and_the_rest_heals(tmp_path: Path) -> None:
    """A layer that only feeds an ArgMax can't be trained; the branch beside it can."""
    rng = np.random.default_rng(0)
    weights = {
        "dead.weight": rng.standard_normal((8, 5)).astype(np.float32),
        "table": rng.standard_normal((5, 4)).astype(np.float32),
        "live.weight": rng.standard_normal((8, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "dead.weight"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["index"], axis=1, keepdims=0),
        helper.make_node("Gather", ["table", "index"], ["picked"]),
        helper.make_node("MatMul", ["x", "live.weight"], ["line"]),
        helper.make_node("Add", ["line", "picked"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )  # fmt: skip
    teacher = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    setting = Setting(tmp_path, teacher, noisy(teacher, 0.2))
    result = setting.heal(epochs=4, batch=32)
    assert [name for name, _ in result.frozen] == ["dead.weight"]
    assert set(result.weights) == {"table", "live.weight"}
    assert result.after < result.before
    assert 0.5 < result.trained_share < 1


def test_a_teacher_with_nan_is_an_error(tmp_path: Path) -> None:
    broken = models.mlp()
    for tensor in broken.graph.initializer:
        if tensor.name == "fc.bias":
            array = numpy_helper.to_array(tensor).copy()
            array[0] = np.nan
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    setting = Setting(tmp_path, broken, models.mlp())
    with pytest.raises(HealError, match="NaN or infinity"):
        setting.heal(epochs=1)


def test_checkpoint_of_another_job_is_not_taken_up(tmp_path: Path) -> None:
    teacher = models.mlp()
    setting = Setting(tmp_path, teacher, noisy(teacher))
    setting.state.mkdir()
    (setting.state / "checkpoint.npz").write_bytes(b"torn")
    (setting.state / "judge.json").write_text(json.dumps({"best": 3, "rounds": [], "fingerprint": "other"}))
    result = setting.heal(epochs=1, batch=32)
    assert [r.number for r in result.loss_curve] == [0, 1]


@pytest.mark.parametrize(
    "options",
    [{"epochs": 1.0, "minutes": 1.0}, {"minutes": 0.0}, {"batch": 0}, {"lr": -1.0}, {"epochs": float("nan")}],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="healing"):
        HealOptions(**options)
