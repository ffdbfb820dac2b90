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


def _option(metavar: str, text: str, panel: str, *flags: str) -> Any:
    return typer.Option(
        *flags, metavar=metavar, help=text, rich_help_panel=panel, show_default=False,
        autocompletion=o.OFFERS.get(flags[-1]),
    )  # fmt: skip


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
    input: o.Input = None,
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

    if parse_heal(heal).mode not in ("epochs", "minutes"):
        raise ConfigError(f"--heal {heal} can't be here", hint="write epochs=3 or minutes=10")
    path = Path(output) if output is not None else Path(pruned).with_suffix(".healed.onnx")
    refuse_overwriting(path, pruned, teacher)
    settings = configure(
        model=pruned, data=data, val=val, metric=metric, max_drop="inf", freeze=freeze, seed=seed, jobs=jobs,
        augment=augment, loss=loss, heal=heal, input=input,
    )  # fmt: skip
    slices = None if plan is None else read_plan(Path(plan)).slices
    result = _trained(settings, Path(teacher), path, slices)
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


def _trained(settings: Config, teacher: Path, path: Path, slices: Any) -> HealResult:
    """Train with progress shown, and write the healed model."""
    from condensec.progress import Progress
    from condensec.stages.graphs import heal as train

    console.current().resume_hint = "run the same command again to go on"
    with Progress(console.current()) as progress:
        return train(settings, teacher, path, slices, progress)
