"""A graph that was emitted before in the same run is copied, not quantized again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx_ir as ir
import pytest

from condensec import api, io, provenance
from condensec.hardware import emit
from condensec.hardware.target import get
from condensec.stages.emissions import Emissions


@pytest.fixture
def model(tmp_path: Path) -> ir.Model:
    return io.load(models.save(models.residual_cnn(), tmp_path))


def changed(model: ir.Model) -> ir.Model:
    """The same with one weight a little larger."""
    other = model.clone()
    value = next(v for v in other.graph.initializers.values() if v.const_value.dtype.is_floating_point())
    value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(1.01), name=value.name)
    return other


def test_the_same_model_is_written_once_and_gets_its_own_provenance(model: ir.Model, tmp_path: Path) -> None:
    target, emissions, written = get("host"), Emissions(), []

    def emitted(one: ir.Model, name: str) -> emit.Artifact:
        out = tmp_path / name

        def write() -> emit.Artifact:
            written.append(name)
            return emit.emit(one, target, out)

        return emissions.get(one, target, out, write)

    first = emitted(model, "first")
    stamped = model.clone()
    provenance.stamp(stamped, original="a" * 64, plan="b" * 64)
    second = emitted(stamped, "second")
    assert written == ["first"]
    assert second.path == tmp_path / "second" / "model.onnx"
    assert str(second.path) in second.command
    assert str(first.path) not in second.command
    assert io.load(second.path).metadata_props[provenance.PLAN] == "b" * 64
    assert second.bytes == second.path.stat().st_size
    assert second.path.read_bytes().startswith(first.path.read_bytes())  # entries are appended, that's all
    emitted(changed(model), "other")
    assert written == ["first", "other"]  # the control: another weight, another graph
    emitted(changed(changed(model)), "third")
    emitted(model, "again")
    assert written[-1] == "again", "the oldest is forgotten"


def test_quantizing_happens_once_where_nothing_has_to_be_cut(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    real = emit.emit

    def counted(*args: Any, **options: Any) -> emit.Artifact:
        calls.append(args[2])
        return real(*args, **options)

    monkeypatch.setattr(emit, "emit", counted)
    data = models.save_samples(models.residual_cnn(), tmp_path / "d.npz", 64)
    options: dict[str, Any] = {
        "data": data, "quantize": "int8", "target": "x86-vnni", "heal": "off", "budget": "latency<=0.99x",
    }  # fmt: skip
    report = api.compress(tmp_path / "model.onnx", output=tmp_path / "o", max_drop=float("inf"), **options)
    assert len(calls) == 1 + (report.after.macs < report.before.macs)
    assert (tmp_path / "o" / "x86-vnni" / "model.onnx").exists()
