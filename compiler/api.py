"""The Python interface: the same line as the command, step by step where wanted.

import condensec

report = condensec.compress("model.onnx", target="mobile-cpu", data="samples.npz")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condensec.config import Config, configure
from condensec.plan import FrozenAxis, Plan, read_plan

if TYPE_CHECKING:
    import onnx_ir as ir

    from condensec.report.model import Report
    from condensec.stages.steps import Observer
    from condensec.verify import Proof

Shapes = Mapping[str, tuple[int, ...]]


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


@dataclass(frozen=True)
class GroupInfo:
    """One group of units that live and die together."""

    id: str
    kind: str
    size: int
    exact: bool
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What is in a model, and what could be cut.

    Attributes:
        inputs, outputs: name -> type and shape.
        opset: of the default domain.
        nodes: number of nodes.
        params: elements of all weights.
        macs: multiply-accumulates of one sample at the sample shapes.
        reachable: share of the MACs in nodes with at least one prunable axis.
        shapes: the sample shapes used.
        groups: prunable groups in graph order.
        frozen: axes that can't be cut, and why.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    opset: int
    nodes: int
    params: int
    macs: int
    reachable: float
    shapes: Shapes
    groups: tuple[GroupInfo, ...]
    frozen: tuple[FrozenAxis, ...]

    def to_json(self) -> dict[str, Any]:
        """The document of ``condensec inspect --json``."""
        return {
            "schema": 1,
            "inputs": dict(self.inputs),
            "outputs": dict(self.outputs),
            "opset": self.opset,
            "nodes": self.nodes,
            "params": self.params,
            "macs": self.macs,
            "reachable": self.reachable,
            "shapes": {name: list(sizes) for name, sizes in self.shapes.items()},
            "groups": [vars(g) | {"tensors": list(g.tensors)} for g in self.groups],
            "frozen": [vars(f) for f in self.frozen],
        }


def inspect(model: str | Path, *, shapes: Shapes | None = None, freeze: str | None = None) -> Inspection:
    """Look at a model without running it.

    Args:
        model: the ONNX file.
        shapes: input name -> whole shape, for dynamic dims.
        freeze: regular expression; nodes and weights whose names match are left alone.

    Raises:
        ModelError: the file can't be read, or its shapes can't be worked out.
    """
    from condensec import io
    from condensec.passes.groups import analyze as find
    from condensec.stages.goals import count_parameters

    loaded = io.load(Path(model))
    signature = io.signature(loaded)
    analysis = find(loaded, shapes, freeze=freeze)
    return Inspection(
        inputs={spec.name: str(spec) for spec in signature.inputs},
        outputs={spec.name: str(spec) for spec in signature.outputs},
        opset=analysis.context.opset,
        nodes=len(list(loaded.graph)),
        params=count_parameters(analysis),
        macs=analysis.macs(),
        reachable=analysis.reachable(),
        shapes={name: (1, *sizes[1:]) for name, sizes in analysis.world.inputs.items()},
        groups=tuple(
            GroupInfo(g.id, g.kind, g.size, g.exact, tuple(dict.fromkeys(a.tensor for a in g.axes)))
            for g in analysis.groups
        ),
        frozen=analysis.frozen,
    )


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
    from condensec import io
    from condensec.passes import criteria
    from condensec.passes.groups import analyze as find
    from condensec.passes.prune import prune
    from condensec.passes.select import unit_order
    from condensec.stages import job

    if options.get("criterion") is None and options.get("data") is None:
        options["criterion"] = "magnitude"
    config = configure(model=model, keep=keep, shape=dict(shapes or {}), **options)
    path = Path(model)
    evidence = None
    if "data" in criteria.needs(config.criterion):
        loaded = job.load_at(path)
        data = job.read_data(config, loaded)
        analysis = job.find_groups(config, loaded, data)
        evidence = job.gathered(analysis, data.splits.calibration, config)
    else:
        analysis = find(io.load(path), shapes, freeze=config.freeze)
    order = unit_order(analysis, criteria.get(config.criterion), seed=config.seed, evidence=evidence)
    step = config.align or 1
    units: dict[str, Sequence[int]] = {}
    for group in analysis.groups:
        count = int(group.size * keep + 1e-9) // step * step or step
        count = min(group.size, max(group.least, count))
        units[group.id] = sorted(int(i) for i in order[group.id][:count])
    return prune(analysis, units, sha256=io.sha256(path)).plan


def apply(
    model: str | Path, plan: Plan | str | Path, output: str | Path, *, shapes: Shapes | None = None
) -> Path:
    """Cut a model as a plan says, prove the cut, and write it.

    Args:
        model: the file the plan was made for.
        plan: a plan, or the path of a plan.json.
        output: the ONNX file to write.
        shapes: input name -> whole shape, for dynamic dims.

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
    cut = replay(find(original, shapes), wanted)
    proof = check(original, cut.plan, cut.model, _feeds(original, shapes))
    if not proof.passed:
        raise PostconditionError(
            f"the cut isn't equivalent to the masked original (error {proof.max_abs_error:.3g})"
        )
    target = Path(output)
    provenance.stamp(cut.model, original=io.sha256(path), plan=wanted.digest())
    io.save(cut.model, target)
    return target


def verify(
    original: str | Path, plan: Plan | str | Path, pruned: str | Path, *, shapes: Shapes | None = None
) -> Proof:
    """Hold a cut model against the masked original; built from the plan and the original file alone.

    Raises:
        PostconditionError: the plan names what the original hasn't, or a model doesn't run.
    """
    from condensec import io
    from condensec.verify import check

    wanted = plan if isinstance(plan, Plan) else read_plan(Path(plan))
    model = io.load(Path(original))
    return check(model, wanted, io.load(Path(pruned)), _feeds(model, shapes))


def _feeds(model: ir.Model, shapes: Shapes | None) -> dict[str, Any]:
    """Seeded inputs for one call."""
    from condensec import io
    from condensec.data import synthetic
    from condensec.probe import runnable_shapes

    signature = io.signature(model)
    shapes = runnable_shapes(model, signature, shapes)
    fixed = next((s.shape[0] for s in signature.inputs if s.shape and isinstance(s.shape[0], int)), None)
    samples = synthetic(signature, seed=0, count=int(fixed or 2), shapes=shapes)
    return dict(samples.inputs)
