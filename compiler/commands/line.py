"""Commands that run the line, or the first part of it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from condensec import console
from condensec.commands import options as o
from condensec.commands.tables import table

if TYPE_CHECKING:
    from condensec.builds.run import Run
    from condensec.config import Config
    from condensec.report import Report
    from condensec.report.model import LossDetail

_MAP_KEYS = (
    "schema", "model", "seed", "before", "groups", "frozen", "sensitivity", "sensitivity_unit",
    "sensitivity_detail", "layer_sensitivity", "sensitivity_samples", "data", "timings", "notes",
)  # fmt: skip
_MapFolder = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output",
        metavar="DIR",
        help="Folder for report.json and report.html, the heat map. Default: none.",
        rich_help_panel=o.OUT,
        show_default=False,
    ),
]
_NOT_SETTINGS = ("json", "quiet", "verbose", "no_cache", "depfile", "depfile_target")  # of one call
_EXIT_CODES = {"ok": 0, "dry_run": 0, "budget_not_met": 3}


def compress(
    model: o.OptionalModel = None,
    target: o.Target = None,
    table: o.Table = None,
    recipe: o.Recipe = None,
    budget: o.Budget = None,
    keep: o.Keep = None,
    max_drop: o.MaxDrop = None,
    data: o.Data = None,
    val: o.Val = None,
    metric: o.MetricName = None,
    shape: o.Shape = None,
    input: o.Input = None,
    step: o.Step = None,
    heal: o.Heal = None,
    teacher: o.Teacher = None,
    augment: o.Augment = None,
    loss: o.Loss = None,
    patterns: o.Patterns = None,
    sparse: o.Sparse = False,
    quantize: o.Quantize = None,
    calibrate: o.Calibrate = None,
    criterion: o.Criterion = None,
    align: o.Align = None,
    freeze: o.Freeze = None,
    seed: o.Seed = None,
    jobs: o.Jobs = None,
    config: o.ConfigFile = None,
    pareto: o.Pareto = None,
    output: o.OutputFolder = None,
    resume: o.Resume = False,
    dry_run: o.DryRun = False,
    no_cache: o.NoCache = False,
    depfile: o.Depfile = None,
    depfile_target: o.DepfileTarget = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> int:
    """Make a trained ONNX network smaller and faster for a target, with proof and measurements."""
    settings = _configure(locals())
    if not settings.dry_run:
        console.current().resume_hint = console.RESUME_HINT
    run = _run(settings, cache=not no_cache)
    report = run.report
    _show(report, cached=run.cached)
    if run.cached:
        console.current().note(
            "the same was computed before: copied from the cache (--no-cache computes anew)"
        )
    if report.status not in ("dry_run",):
        console.current().note(f"written to {settings.output}")
        write_depfile(depfile, depfile_target or settings.output / "report.json", settings, config)
    return _EXIT_CODES.get(report.status, 0)


def write_depfile(depfile: str | None, target: str | Path, settings: Config, *more: str | None) -> None:
    """Write ``--depfile``, if it was asked for: what the settings name, more files, and condensec itself."""
    from condensec.builds.depfile import write_depfile as write
    from condensec.builds.inputs import config_files, package_file

    if depfile is not None:
        write(Path(depfile), target, config_files(settings, [*filter(None, more), package_file()]))


def _configure(given: dict[str, Any]) -> Config:
    """Settings from a command's arguments."""
    from condensec.config import configure

    options = {k: v for k, v in given.items() if k not in _NOT_SETTINGS and v not in (None, [], False)}
    return configure(command=shlex.join(["condensec", *sys.argv[1:]]), **options)


def _run(settings: Config, *, cache: bool) -> Run:
    from condensec.builds.run import compress
    from condensec.progress import Progress

    def waiting() -> None:
        progress.say("another process computes the same; waiting for its result")

    with Progress(console.current()) as progress:
        return compress(settings, progress, cache=cache, on_wait=waiting)


def _show(report: Report, *, cached: bool = False) -> None:
    from condensec.report.terminal import text

    screen = console.current()
    table = "" if screen.json else text(report, color=console.color(sys.stdout))
    screen.result(table, {**report.to_json(), "cached": True} if cached else report.to_json())


def analyze(
    model: o.Model,
    target: o.Target = None,
    data: o.Data = None,
    val: o.Val = None,
    metric: o.MetricName = None,
    shape: o.Shape = None,
    input: o.Input = None,
    criterion: o.Criterion = None,
    freeze: o.Freeze = None,
    seed: o.Seed = None,
    jobs: o.Jobs = None,
    output: _MapFolder = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Measure what each group of units is worth: the loss when only a share of it stays."""
    given = {k: v for k, v in locals().items() if k != "output"}
    report = _analyzed(_configure({**given, "dry_run": True}))
    if output is not None:
        _write_map(report, Path(output))
    console.current().result(_map_text(report), _map_document(report))


def _analyzed(settings: Config) -> Report:
    from condensec.pipeline import analyze as run
    from condensec.progress import Progress

    with Progress(console.current()) as progress:
        return run(settings, progress)


def _write_map(report: Report, folder: Path) -> None:
    """report.json and report.html."""
    from condensec.config import check_output
    from condensec.report import write_text
    from condensec.report.html import write_html

    check_output(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.json", report.dumps())
    write_html(report, folder / "report.html")
    console.current().note(f"written to {folder}")


def _map_text(report: Report) -> str:
    details = report.sensitivity_detail.values()
    shares = sorted({share for losses in details for share in losses}, key=float)[::-1]
    common = [s for s in shares if 2 * sum(s in losses for losses in details) >= len(report.groups)]
    rows = []
    for group in report.groups:
        losses = report.sensitivity_detail.get(group.id, {})
        cells = [_cell(losses.get(share)) for share in common]
        rows.append((group.id, group.kind, str(group.size), *cells))
    head = ("group", "kind", "units", *(f"keep {float(share):g}" for share in common))
    parts = [table(head, rows)]
    if report.layer_sensitivity:
        layers = [(name, _cell(found)) for name, found in report.layer_sensitivity.items()]
        parts.append(table(("layer", "without it"), layers))
    what = f"{report.sensitivity_unit}, +- half of its 95% interval, on {report.sensitivity_samples} samples"
    return "\n\n".join([*parts, "\n".join([what, *report.notes])])


def _cell(found: LossDetail | None) -> str:
    if found is None:
        return "-"
    spread = "" if found.ci95 is None else f" +-{found.ci95[1] - found.loss:.1g}"
    metric = "" if found.metric is None else f" ({found.metric:.3g})"
    return f"{found.loss:.2g}{spread}{metric}"


def _map_document(report: Report) -> dict[str, Any]:
    document = report.to_json()
    return {key: document[key] for key in _MAP_KEYS if key in document}
