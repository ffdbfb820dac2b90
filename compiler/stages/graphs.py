"""Steps on finished graphs, outside of the line: any smaller model learns from a larger one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from condensec import data as samples
from condensec import io
from condensec.config import Config
from condensec.decisions import with_scores
from condensec.errors import ModelError
from condensec.healing import HealOptions, HealResult
from condensec.healing import heal as train
from condensec.healing.qdq import as_stored, with_float_weights
from condensec.metrics import resolve
from condensec.specs import parse_heal, parse_losses
from condensec.stages.steps import Observer, Steps

Slices = Mapping[str, Mapping[int, Sequence[int]]]


def heal(
    config: Config, teacher: Path, path: Path, slices: Slices | None = None, observer: Observer | None = None
) -> HealResult:
    """Train a model to answer as another does, and write it.

    Args:
        config: ``model`` is the student; ``data``, ``val``, ``metric``, ``heal``, ``augment``, ``loss``, ...
        teacher: the ONNX file to learn from; it has the same inputs and outputs.
        path: the file to write. What is needed to go on after an interruption lies beside it, hidden.
        slices: of the plan that cut the student, so that inner values can be compared.
        observer: told how far it is.

    Raises:
        CondensecError: see `condensec.errors`.
    """
    steps = Steps(observer)
    student = steps.run("load", _student, config, teacher)
    signature = io.signature(student)
    values = config.input_values
    given = samples.load(config.data, signature, seed=config.seed, values=values)
    held = (
        None if config.val is None else samples.load(config.val, signature, seed=config.seed, values=values)
    )
    splits = samples.split(given, held, seed=config.seed)
    floats, found = with_float_weights(student)
    work = with_scores(floats)
    copies: list[Path] = []
    trained, taught = Path(config.model), teacher
    if found or work is not floats:  # integers behind a DequantizeLinear are trained as what they mean
        trained = _aside(work, path, "student", copies)
    if work is not floats:  # class numbers are learned by the scores behind them
        taught = _aside(with_scores(io.load(teacher)), path, "teacher", copies)
    result = steps.run(
        "heal", train, trained, taught, splits.train, splits.validation, _options(config),
        metric=resolve(config.metric, splits.validation, signature),
        state=path.with_name(f".{path.name}.state"),
        progress=lambda share, text: steps.progress("heal", share, text),
        slices=slices,
    )  # fmt: skip
    for name, array in as_stored(result.weights, found).items():
        _replace(student, name, array)
    io.save(student, path)
    for copy in copies:
        copy.unlink(missing_ok=True)
    return result


def _aside(model: ir.Model, path: Path, role: str, copies: list[Path]) -> Path:
    """A copy that is worked with, hidden beside the file to write; noted in ``copies``."""
    copy = path.with_name(f".{path.name}.{role}.onnx")
    io.save(model, copy)
    copies.append(copy)
    return copy


def _student(config: Config, teacher: Path) -> ir.Model:
    """The model to train, once it is known to have the teacher's interface."""
    student = io.load(config.model)
    sides = [[[v.name for v in side] for side in (s.inputs, s.outputs)]
             for s in (io.signature(student), io.signature(io.load(teacher)))]  # fmt: skip
    if sides[0] != sides[1]:
        raise ModelError(f"{config.model} and {teacher} don't have the same inputs and outputs")
    return student


def _options(config: Config) -> HealOptions:
    spec = parse_heal(config.heal)
    return HealOptions(
        epochs=spec.epochs,
        minutes=spec.minutes,
        seed=config.seed,
        jobs=config.jobs,
        augment=config.augment,
        losses=None if config.loss is None else parse_losses(config.loss),
        **{"freeze": config.freeze, **spec.options},
    )


def _replace(model: ir.Model, name: str, array: Any) -> None:
    """Give a weight new values, be it an initializer or a Constant node."""
    if name in model.graph.initializers:
        model.graph.initializers[name].const_value = ir.Tensor(array, name=name)
        return
    for node in model.graph:
        if node.op_type == "Constant" and node.outputs[0].name == name:
            node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(array, name=name))
            return
