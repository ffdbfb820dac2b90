"""Commands that run the line, or the first part of it."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

from condensec import console
from condensec.commands import options as o
from condensec.commands.tables import table

if TYPE_CHECKING:
    from condensec.config import Config
    from condensec.report import Report

_EXIT_CODES = {"ok": 0, "dry_run": 0, "budget_not_met": 3}


def compress(
    model: o.OptionalModel = None,
    target: o.Target = None,
    budget: o.Budget = None,
    keep: o.Keep = None,
    max_drop: o.MaxDrop = None,
    data: o.Data = None,
    val: o.Val = None,
    metric: o.MetricName = None,
    shape: o.Shape = None,
    step: o.Step = None,
    heal: o.Heal = None,
    augment: o.Augment = None,
    loss: o.Loss = None,
    patterns: o.Patterns = None,
    quantize: o.Quantize = None,
    criterion: o.Criterion = None,
    align: o.Align = None,
    freeze: o.Freeze = None,
    seed: o.Seed = None,
    jobs: o.Jobs = None,
    config: o.ConfigFile = None,
    output: o.OutputFolder = None,
    resume: o.Resume = False,
    dry_run: o.DryRun = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> int:
    """Make a trained ONNX network smaller and faster for a target, with proof and measurements."""
    settings = _configure(locals())
    if not settings.dry_run:
        console.current().resume_hint = console.RESUME_HINT
    report = _run(settings)
    _show(report)
    if report.status not in ("dry_run",):
        console.current().note(f"written to {settings.output}")
    return _EXIT_CODES.get(report.status, 0)


def _configure(given: dict[str, Any]) -> Config:
    """Settings from a command's arguments."""
    from condensec.config import configure

    how_to_speak = ("json", "quiet", "verbose")
    options = {k: v for k, v in given.items() if k not in how_to_speak and v not in (None, [], False)}
    return configure(command=shlex.join(["condensec", *sys.argv[1:]]), **options)


def _run(settings: Config) -> Report:
    from condensec.pipeline import compress
    from condensec.progress import Progress

    with Progress(console.current()) as progress:
        return compress(settings, progress)


def _show(report: Report) -> None:
    from condensec.report.terminal import text

    screen = console.current()
    table = "" if screen.json else text(report, color=console.color(sys.stdout))
    screen.result(table, report.to_json())


def analyze(
    model: o.Model,
    target: o.Target = None,
    data: o.Data = None,
    val: o.Val = None,
    metric: o.MetricName = None,
    shape: o.Shape = None,
    criterion: o.Criterion = None,
    freeze: o.Freeze = None,
    seed: o.Seed = None,
    jobs: o.Jobs = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Measure what each group of units is worth: the loss when only a share of it stays."""
    report = _run(_configure({**locals(), "dry_run": True}))
    shares = sorted({share for losses in report.sensitivity.values() for share in losses}, key=float)[::-1]
    rows = []
    for group in report.groups:
        losses = report.sensitivity.get(group.id, {})
        cells = [_loss(losses.get(share)) for share in shares]
        rows.append((group.id, group.kind, str(group.size), *cells))
    head = ("group", "kind", "units", *(f"keep {float(share):g}" for share in shares))
    document = report.to_json()
    keys = ("schema", "model", "seed", "before", "groups", "frozen", "sensitivity", "data", "timings")
    console.current().result(table(head, rows), {key: document[key] for key in keys if key in document})


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
