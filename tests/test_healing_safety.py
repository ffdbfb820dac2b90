"""Whatever happens on the way, the student's file stays, and the user gets one line or the same result."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from healing_tools import Setting, noisy

from condensec.data import Samples, load
from condensec.errors import CondensecError, HealError
from condensec.healing import client, session

posix = pytest.mark.skipif(os.name == "nt", reason="uses signals and resource limits")


@posix
def test_two_kills_at_random_moments_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once while the worker starts, once shortly behind a validation; benchmarks/heal_kills.py does more."""
    teacher = models.depthwise_se_cnn()
    setting = Setting(tmp_path, teacher, noisy(teacher), count=128)
    before = setting.student.read_bytes()
    options: dict[str, Any] = {"epochs": 40, "batch": 32, "augment": "flip"}
    peace = setting.heal(**options)
    workers: list[client.Worker] = []

    class Watched(client.Worker):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            workers.append(self)
            if len(workers) == 1:
                shoot()

    rng = random.Random(1)

    def shoot() -> None:
        timer = threading.Timer(rng.uniform(0.0, 0.05), workers[-1].process.kill)
        timer.daemon = True
        timer.start()

    def behind_a_validation(share: float, text: str) -> None:
        if 0.2 < share < 0.8 and "on validation" in text and len(workers) == 2:
            shoot()

    monkeypatch.setattr(session, "Worker", Watched)
    for _ in range(2):
        with pytest.raises(HealError, match=r"killed|no longer") as caught:
            setting.heal(progress=behind_a_validation, **options)
        assert "\n" not in str(caught.value)
    war = setting.heal(progress=behind_a_validation, **options)
    assert len(workers) == 3
    assert peace.weights
    assert all(np.array_equal(peace.weights[name], war.weights[name]) for name in peace.weights)
    assert [r.validation_loss for r in peace.loss_curve] == [r.validation_loss for r in war.loss_curve]
    assert setting.student.read_bytes() == before


_LIMITED = textwrap.dedent(
    """
    import json, resource, sys
    from pathlib import Path
    import numpy as np
    from condensec.data import Samples
    from condensec.errors import CondensecError
    from condensec.healing import HealOptions, environment, heal
    folder, limit = Path(sys.argv[1]), int(sys.argv[2])
    samples = Samples(dict(np.load(folder / "x.npz")))
    environment.ensure()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        heal(folder / "s.onnx", folder / "t.onnx", samples, samples, HealOptions(epochs=2, batch=16),
             state=folder / "state")
        print(json.dumps("done"))
    except CondensecError as error:
        print(json.dumps(str(error)))
    """
)


@posix
@pytest.mark.parametrize(("share", "words"), [(0.5, "can't write"), (2.0, "can't write"), (20.0, "done")])
def test_a_full_disk_is_one_line(tmp_path: Path, share: float, words: str) -> None:
    """No room for the samples, then none for a checkpoint (four weights large); the control has enough."""
    teacher = models.mlp(features=16, hidden=(256, 256))
    setting = Setting(tmp_path, teacher, noisy(teacher), count=64, labelled=False)
    np.savez(tmp_path / "x.npz", **setting.train.inputs)
    before = setting.student.read_bytes()
    weights = 4 * sum(int(np.prod(t.dims)) for t in teacher.graph.initializer)
    limit = int(share * (weights if share > 1 else 4 * 64 * 16))
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path), str(limit)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert words in told
    assert "\n" not in told
    assert setting.student.read_bytes() == before


@pytest.mark.parametrize("where", ["train", "validation", "labels"])
def test_numbers_that_are_none_are_named(tmp_path: Path, where: str) -> None:
    teacher = models.mlp()
    setting = Setting(tmp_path, teacher, noisy(teacher), count=64, labelled=False)
    part = setting.validation if where == "validation" else setting.train
    x = np.array(part.inputs["input"])
    labels = None
    if where == "labels":
        labels = np.zeros((64, 10), np.float32)
        labels[40, 2] = np.nan
    else:
        x[40, 3] = np.inf
    broken = Samples({"input": x}, labels=labels)
    if where == "validation":
        setting.validation = broken
    else:
        setting.train = broken
    losses = {"task_mse": 1.0} if where == "labels" else None
    before = setting.student.read_bytes()
    with pytest.raises(CondensecError, match="NaN or infinity") as caught:
        setting.heal(epochs=1, losses=losses)
    assert ("labels" if where == "labels" else "'input'") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert setting.student.read_bytes() == before


@posix
@pytest.mark.parametrize("how", ["overwritten", "cut off", "replaced"])
def test_a_data_file_that_changes_on_the_way(tmp_path: Path, how: str) -> None:
    """Written over or cut off: one line. Replaced by another file: what is mapped is still the old one."""
    from condensec import io

    teacher = models.mlp()
    setting = Setting(tmp_path, teacher, noisy(teacher), count=512, labelled=False)
    path = tmp_path / "x.npz"
    np.savez(path, **setting.train.inputs)
    setting.train = load(str(path), io.signature(io.load(setting.student)))
    done = []

    def change(share: float, text: str) -> None:
        if done or "on validation" not in text:
            return
        done.append(how)
        if how == "replaced":
            np.savez(tmp_path / "y.npz", **setting.train.inputs)
            os.replace(tmp_path / "y.npz", path)
        elif how == "cut off":
            os.truncate(path, 100)
        else:
            with open(path, "r+b") as file:
                file.seek(4000)
                file.write(b"\0" * 1000)

    if how == "replaced":
        result = setting.heal(epochs=3, batch=32, augment=lambda batch, rng: batch, progress=change)
        assert result.after < result.before
    else:
        with pytest.raises(HealError, match=r"x.npz was changed while it was being read") as caught:
            setting.heal(epochs=9, batch=32, augment=lambda batch, rng: batch, progress=change)
        assert "\n" not in str(caught.value)
    assert done
