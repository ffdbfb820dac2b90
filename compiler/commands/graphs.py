"""Commands on finished graphs: heal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from condensec import console
from condensec.commands import options as o
from condensec.commands.tables import table

if TYPE_CHECKING:
    from condensec.config import Config
    from condensec.healing import HealResult
    from condensec.specs import Heal


def _option(metavar: str, text: str, panel: str, *flags: str) -> Any:
    return typer.Option(*flags, metavar=metavar, help=text, rich_help_panel=panel, show_default=False)


_Student = Annotated[str, typer.Argument(metavar="PRUNED", help="The ONNX file to heal.", show_default=False)]
_Teacher = Annotated[str, _option("ORIGINAL", "The ONNX file to learn from.", o.WHAT, "--teacher")]
_Samples = Annotated[str, _option("PATH", "Samples, as for compressing.", o.WHAT, "--data")]
_HowLong = Annotated[str, _option("SPEC", "epochs=3 (the default) or minutes=10.", o.HOW, "--heal")]
_PlanFile = Annotated[
    str | None,
    _option(
        "FILE", "The plan that cut it: says which inner values --loss features can compare.", o.WHAT, "--plan"
    ),
]
_HealedFile = Annotated[
    str | None, _option("FILE", "File to write. Default: PRUNED.healed.onnx.", o.OUT, "-o", "--output")
]


def heal(
    pruned: _Student,
    teacher: _Teacher,
    data: _Samples,
    val: o.Val = None,
    metric: o.MetricName = None,
    heal: _HowLong = "epochs=3",
    augment: o.Augment = None,
    loss: o.Loss = None,
    plan: _PlanFile = None,
    freeze: o.Freeze = None,
    seed: o.Seed = None,
    jobs: o.Jobs = None,
    output: _HealedFile = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Train any smaller model to answer as its original does (same inputs and outputs)."""
    from condensec.commands.steps import refuse_overwriting
    from condensec.config import configure
    from condensec.errors import ConfigError
    from condensec.plan import read_plan
    from condensec.specs import parse_heal

    spec = parse_heal(heal)
    if spec.mode not in ("epochs", "minutes"):
        raise ConfigError(f"--heal {heal} can't be here", hint="write epochs=3 or minutes=10")
    path = Path(output) if output is not None else Path(pruned).with_suffix(".healed.onnx")
    refuse_overwriting(path, pruned, teacher)
    settings = configure(
        model=pruned, data=data, val=val, metric=metric, max_drop="inf", freeze=freeze, seed=seed, jobs=jobs,
        augment=augment, loss=loss,
    )  # fmt: skip
    slices = None if plan is None else read_plan(Path(plan)).slices
    result = _heal(settings, Path(teacher), spec, path, slices)
    console.current().result(*_healed(result, path))  # before and after are the metric on held-out samples


def _healed(result: HealResult, path: Path) -> tuple[str, dict[str, Any]]:
    """What came of healing, as text and as a document."""
    document = {
        "schema": 1,
        "file": str(path),
        "before": result.before,
        "after": result.after,
        "steps": result.steps,
        "seconds": result.seconds,
        "samples_per_second": result.samples_per_second,
        "peak_rss_mb": result.peak_rss_mb,
        "trained_share": result.trained_share,
        "around": [{"node": node, "reason": reason} for node, reason in result.around],
        "frozen": [{"name": name, "reason": reason} for name, reason in result.frozen],
        "lr": result.lr,
        "note": result.note,
    }
    rows = [
        ("before", f"{result.before:.4g}"),
        ("after", f"{result.after:.4g}"),
        ("steps", f"{result.steps} in {result.seconds:.0f} s"),
        ("trained", f"{100 * result.trained_share:.0f}% of the parameters"),
        ("written", str(path)),
    ]
    rows += [("healed around", f"{node}: {reason}") for node, reason in result.around]
    rows += [("note", result.note)] * bool(result.note)
    return table(("", ""), rows), document


def _heal(settings: Config, teacher: Path, spec: Heal, path: Path, slices: Any) -> HealResult:
    """Read both models and the data, train, and write the healed model."""
    from condensec import data as samples
    from condensec import io
    from condensec.errors import ModelError
    from condensec.healing import HealOptions
    from condensec.healing import heal as train
    from condensec.metrics import resolve
    from condensec.progress import Progress
    from condensec.specs import parse_losses

    student = io.load(settings.model)
    signature, original = io.signature(student), io.signature(io.load(teacher))
    names = [[[v.name for v in side] for side in (s.inputs, s.outputs)] for s in (signature, original)]
    if names[0] != names[1]:
        raise ModelError(f"{settings.model} and {teacher} don't have the same inputs and outputs")
    given = samples.load(settings.data, signature, seed=settings.seed)
    held = None if settings.val is None else samples.load(settings.val, signature, seed=settings.seed)
    splits = samples.split(given, held, seed=settings.seed)
    metric = resolve(settings.metric, splits.validation, signature)
    options = HealOptions(
        epochs=spec.epochs,
        minutes=spec.minutes,
        seed=settings.seed,
        jobs=settings.jobs,
        augment=settings.augment,
        losses=None if settings.loss is None else parse_losses(settings.loss),
        **{"freeze": settings.freeze, **spec.options},
    )
    state = path.with_name(f".{path.name}.state")
    console.current().resume_hint = "run the same command again to go on"
    with Progress(console.current()) as progress:
        progress("heal", None, None)
        result = train(
            settings.model, teacher, splits.train, splits.validation, options, metric=metric, state=state,
            progress=lambda share, text: progress.share("heal", share, text), slices=slices,
        )  # fmt: skip
    for name, array in result.weights.items():
        _replace(student, name, array)
    io.save(student, path)
    return result


def _replace(model: Any, name: str, array: Any) -> None:
    """Give a weight new values, be it an initializer or a Constant node."""
    import onnx_ir as ir

    if name in model.graph.initializers:
        model.graph.initializers[name].const_value = ir.Tensor(array, name=name)
        return
    for node in model.graph:
        if node.op_type == "Constant" and node.outputs[0].name == name:
            node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(array, name=name))
            return
