"""The Python interface: the same line as the command, step by step where wanted.

import condensec

report = condensec.compress("model.onnx", target="mobile-cpu", data="samples.npz")

from condensec import api

plan = api.plan("model.onnx", keep=0.5, data="samples.npz")
api.apply("model.onnx", plan, "cut.onnx")
api.verify("model.onnx", plan, "cut.onnx")
api.heal("cut.onnx", "model.onnx", "samples.npz", "healed.onnx")
api.emit("healed.onnx", "out", target="mobile-cpu")
api.bench("model.onnx", "healed.onnx")

Stable: what stands here keeps its name, its arguments and what it returns; new optional arguments and new
fields may come. The loggers below ``condensec`` tell what is done (INFO); nothing is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condensec.config import Config, configure
from condensec.plan import Plan, read_plan
from condensec.stages.inspection import GroupInfo, Inspection, Shapes

if TYPE_CHECKING:
    import onnx_ir as ir

    from condensec.builds.gate import Judgement
    from condensec.hardware.bench import Comparison, Measurement
    from condensec.hardware.emission import Artifact
    from condensec.healing import HealResult
    from condensec.report.model import Report
    from condensec.stages.steps import Observer
    from condensec.verify import Proof

__all__ = [
    "GroupInfo",
    "Inspection",
    "Shapes",
    "analyze",
    "apply",
    "bench",
    "check",
    "compress",
    "emit",
    "heal",
    "inspect",
    "plan",
    "verify",
]


def compress(
    model: str | Path | Config, *, observer: Observer | None = None, cache: bool = False, **options: Any
) -> Report:
    """Run the whole line and write the output folder.

    Args:
        model: the ONNX file, or a finished `Config`.
        observer: told of every step, see `condensec.stages.steps.Steps`; of none where the cache answers.
        cache: take the result from the user's cache where the same was computed before, and keep it there.
        options: named like the flags: ``target``, ``budget``, ``data``, ``val``, ``metric``, ``max_drop``,
            ``heal``, ``output``, ``seed``, ... ``data`` may also be arrays by input name, or a callable.

    Returns:
        What is in report.json.

    Raises:
        CondensecError: see `condensec.errors`.
    """
    from condensec.builds.run import compress as run

    config = model if isinstance(model, Config) else configure(model=model, **options)
    return run(config, observer, cache=cache).report


def analyze(model: str | Path | Config, *, observer: Observer | None = None, **options: Any) -> Report:
    """Measure what each group of units, and each residual block, is worth; nothing is cut.

    Args:
        model: the ONNX file, or a finished `Config`.
        observer: told of every step, see `condensec.stages.steps.Steps`.
        options: ``data``, ``val``, ``metric``, ``criterion``, ``freeze``, ``shape``, ``seed``, ``jobs``.

    Returns:
        A report with ``sensitivity``, ``sensitivity_detail`` (intervals, and the metric where there are
        labels) and ``layer_sensitivity``; `condensec.report.html.write_html` draws the heat map.

    Raises:
        CondensecError: see `condensec.errors`.
    """
    from condensec.pipeline import analyze as run

    config = model if isinstance(model, Config) else configure(model=model, **options)
    return run(config, observer)


def inspect(model: str | Path, *, shapes: Shapes | None = None, freeze: str | None = None) -> Inspection:
    """Look at a model without running it.

    Args:
        model: the ONNX file.
        shapes: input name -> whole shape, for dynamic dims.
        freeze: regular expression; nodes and weights whose names match are left alone.

    Raises:
        ModelError: the file can't be read, or its shapes can't be worked out.
    """
    from condensec.stages.inspection import look

    return look(Path(model), shapes, freeze)


def plan(model: str | Path, *, keep: float = 0.5, shapes: Shapes | None = None, **options: Any) -> Plan:
    """A uniform plan: the same share of every group's units, by importance.

    Args:
        model: the ONNX file.
        keep: share that stays, in (0, 1]; at least one unit of each group.
        shapes: input name -> whole shape, for dynamic dims.
        options: ``criterion``, ``data``, ``align``, ``freeze``, ``seed`` and ``jobs``, as the flags. Without
            ``data`` units go by the size of their weights; a criterion that looks at activations gets
            made-up inputs then, if it is asked for.
    """
    from condensec.stages.uniform import planned

    if options.get("criterion") is None and options.get("data") is None:
        options["criterion"] = "magnitude"
    config = configure(model=model, keep=keep, shape=dict(shapes or {}), **options)
    return planned(config, keep, shapes)


def apply(
    model: str | Path,
    plan: Plan | str | Path,
    output: str | Path,
    *,
    shapes: Shapes | None = None,
    data: Any = None,
    inputs: Mapping[str, Any] | None = None,
) -> Path:
    """Cut a model as a plan says, prove the cut, and write it.

    Args:
        model: the file the plan was made for.
        plan: a plan, or the path of a plan.json.
        output: the ONNX file to write.
        shapes: input name -> whole shape, for dynamic dims of made-up inputs.
        data: samples to prove the cut with, like ``--data``; default: made up.
        inputs: input name -> value, for inputs that are the same in every sample.

    Raises:
        ConfigError: the plan can't be read, or was made for another file.
        PostconditionError: the cut isn't equivalent to the masked original; nothing is written.
    """
    from condensec import io, provenance
    from condensec.errors import ConfigError, PostconditionError
    from condensec.passes.groups import analyze as find
    from condensec.passes.prune import replay
    from condensec.verify import check

    path = Path(model)
    wanted = plan if isinstance(plan, Plan) else read_plan(Path(plan))
    if wanted.sha256 and wanted.sha256 != io.sha256(path):
        raise ConfigError(f"the plan was made for another file than {path}", hint="its sha256 differs")
    original = io.load(path)
    feeds = _feeds(original, shapes, data, inputs)
    cut = replay(find(original, {name: array.shape for name, array in feeds.items()}), wanted)
    proof = check(original, cut.plan, cut.model, feeds)
    if not proof.passed:
        raise PostconditionError(
            f"the cut isn't equivalent to the masked original (error {proof.max_abs_error:.3g})"
        )
    target = Path(output)
    provenance.stamp(cut.model, original=io.sha256(path), plan=wanted.digest())
    io.save(cut.model, target)
    return target


def verify(
    original: str | Path,
    plan: Plan | str | Path,
    pruned: str | Path,
    *,
    shapes: Shapes | None = None,
    data: Any = None,
    inputs: Mapping[str, Any] | None = None,
) -> Proof:
    """Hold a cut model against the masked original; built from the plan and the original file alone.

    Args:
        original: the uncut file.
        plan: what was cut.
        pruned: the cut file, before healing.
        shapes: input name -> whole shape, for dynamic dims of made-up inputs.
        data: samples to prove the cut with, like ``--data``; default: made up.
        inputs: input name -> value, for inputs that are the same in every sample.

    Raises:
        PostconditionError: the plan names what the original hasn't, or a model doesn't run.
    """
    from condensec import io
    from condensec.verify import check

    wanted = plan if isinstance(plan, Plan) else read_plan(Path(plan))
    model = io.load(Path(original))
    return check(model, wanted, io.load(Path(pruned)), _feeds(model, shapes, data, inputs))


def heal(
    pruned: str | Path,
    teacher: str | Path,
    data: Any,
    output: str | Path,
    *,
    plan: Plan | str | Path | None = None,
    observer: Observer | None = None,
    **options: Any,
) -> HealResult:
    """Train any smaller model to answer as its original does, and write it.

    Args:
        pruned: the ONNX file to train.
        teacher: the ONNX file to learn from; it has the same inputs and outputs.
        data: samples, as for `compress`.
        output: the ONNX file to write.
        plan: the plan that cut it: says which inner values can be compared (``loss="output=1,features=1"``).
        observer: told how far it is.
        options: ``heal`` (``epochs=3``, the default, or ``minutes=10``), ``val``, ``metric``, ``augment``,
            ``loss``, ``freeze``, ``seed``, ``jobs``.

    Returns:
        What it brought; ``before`` and ``after`` are the metric on held-out samples.

    Raises:
        CondensecError: see `condensec.errors`.
    """
    from condensec.stages.graphs import heal as run

    found = read_plan(Path(plan)) if isinstance(plan, str | Path) else plan
    config = configure(model=pruned, data=data, **{"heal": "epochs=3", "max_drop": "inf", **options})
    return run(config, Path(teacher), Path(output), None if found is None else found.slices, observer)


def emit(
    model: str | Path,
    output: str | Path,
    *,
    target: str | Sequence[str] = "host",
    accept: Callable[[Path], bool] | None = None,
    **options: Any,
) -> dict[str, Artifact]:
    """Write a model as each target's runtime wants it, without cutting anything.

    Args:
        model: the ONNX file.
        output: the folder; the graphs are in ``<target>/model.onnx``.
        target: one or more names.
        accept: whether a graph of lower precision is good enough; default: with ``data`` the metric on
            held-out samples, where ``max_drop`` is given or ``quantize`` is ``auto``; without data the same
            answer on 98%.
        options: ``quantize`` (``none``, the default, ``int8``, ``fp16``, ``auto``), ``data`` to calibrate
            with, ``val``, ``metric``, ``max_drop``, ``calibrate``, ``shape``, ``input``, ``seed``, ``jobs``.

    Returns:
        What was written, by target.

    Raises:
        CondensecError: see `condensec.errors`.
    """
    from condensec.stages.deploy import emitted

    config = configure(model=model, output=Path(output), target=target, **options)
    guarded = options.get("max_drop") is not None
    return emitted(config, Path(output), guarded=guarded, accept=accept)[0]


def bench(
    model: str | Path,
    other: str | Path | None = None,
    *,
    shapes: Shapes | None = None,
    jobs: int = 1,
    seed: int = 0,
) -> Measurement | Comparison:
    """Time a model on this machine, or two against each other in turns.

    Args:
        model: the ONNX file.
        other: a model to compare with; it takes the same inputs.
        shapes: input name -> whole shape, for dynamic dims.
        jobs: threads.
        seed: of the made-up inputs.

    Returns:
        A `condensec.hardware.bench.Measurement`, or a `condensec.hardware.bench.Comparison` (other over
        model) with a 95% interval.

    Raises:
        CondensecError: see `condensec.errors`.
    """
    from condensec import io
    from condensec.hardware import bench as clock
    from condensec.hardware.protocol import Protocol
    from condensec.probe import runnable_shapes

    last = Path(model if other is None else other)
    found = runnable_shapes(last, io.signature(io.load(last)), dict(shapes or {}))
    protocol = Protocol(threads=jobs, seed=seed)
    if other is None:
        return clock.measure(Path(model), shapes=found, protocol=protocol)
    return clock.compare(Path(model), Path(other), shapes=found, protocol=protocol)


def check(model: str | Path, **options: Any) -> Judgement:
    """Hold a model against its budgets of size, latency and accuracy.

    Args:
        model: the ONNX file.
        options: ``budget``, ``against``, ``max_drop``, ``data``, ``metric``, ``target``, ``shape``, ``jobs``,
            as the flags of ``condensec check``.

    Returns:
        Each budget with its figure; ``kept`` says whether all hold.

    Raises:
        CondensecError: see `condensec.errors`.
    """
    from condensec.builds.gate import judge
    from condensec.builds.rules import rule

    return judge(rule(model, options))


def _feeds(
    model: ir.Model, shapes: Shapes | None, data: Any = None, inputs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Inputs for one call: samples of the user's, or seeded ones."""
    import numpy as np

    from condensec import io
    from condensec.data import load, synthetic
    from condensec.probe import runnable_shapes

    signature = io.signature(model)
    values = {name: np.asarray(value) for name, value in (inputs or {}).items()}
    if data is not None:
        return signature.call(load(data, signature, values=values), 4)
    found = runnable_shapes(model, signature, shapes, values)
    samples = synthetic(signature, seed=0, count=signature.batch or 2, shapes=found, values=values)
    return signature.call(samples, 2)
