"""Commands for build systems: cache, check, cmake-dir."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from condensec import console
from condensec.commands import options as o
from condensec.commands.tables import table

if TYPE_CHECKING:
    from condensec.builds.gate import Judgement
    from condensec.builds.rules import Rule


def _option(flag: str, metavar: str, text: str, *more: str) -> Any:
    return typer.Option(*more, flag, metavar=metavar, help=text, rich_help_panel=o.WHAT, show_default=False)


def cache(
    clear: Annotated[
        bool,
        typer.Option("--clear", help="Remove what is kept.", rich_help_panel="What", show_default=False),
    ] = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Show the kept results of earlier runs, or remove them."""
    from condensec.builds.cache import ResultCache

    kept = ResultCache()
    removed = kept.clear() if clear else 0
    entries = kept.entries()
    total = sum(entry.bytes for entry in entries)
    document = {
        "schema": 1,
        "folder": str(kept.folder),
        "limit": kept.limit,
        "bytes": total,
        "removed": removed,
        "entries": [vars(entry) for entry in entries],
    }
    facts = [
        ("folder", str(kept.folder)),
        ("kept", f"{len(entries)} results, {total:,} bytes of at most {kept.limit:,}"),
    ]
    facts += [("removed", str(removed))] if clear else []
    rows = [(e.model, f"{e.bytes:,}", _day(e.used), e.key[:12]) for e in reversed(entries)]
    parts = [table(("", ""), facts)]
    parts += [table(("model", "bytes", "last used", "key"), rows)] if rows else []
    console.current().result("\n\n".join(parts), document)


def _day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).isoformat(" ", "minutes")


def check(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL...",
            help="ONNX files. Without any, what condensec-check.toml lists.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        list[str] | None,
        _option(
            "--budget",
            "EXPR",
            "What has to hold: 'size<=4MB', 'latency<=5ms', 'macs<=0.5x', 'top1>=0.93'; repeatable.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        _option("--against", "FILE", "The original, or its report.json: for shares and --max-drop."),
    ] = None,
    max_drop: Annotated[
        str | None, _option("--max-drop", "X", "Points of the metric that may be lost against the original.")
    ] = None,
    data: Annotated[str | None, _option("--data", "PATH", "Samples that accuracy is measured on.")] = None,
    metric: o.MetricName = None,
    target: Annotated[
        str | None, _option("--target", "NAME", "Where latency counts. Default: host (measured here).")
    ] = None,
    shape: o.Shape = None,
    jobs: Annotated[str | None, _option("--jobs", "N", "Threads. Default: 1.", "-j")] = None,
    config: Annotated[
        str | None, _option("--config", "FILE", "Rules for several models. Default: condensec-check.toml.")
    ] = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> int:
    """Fail (exit code 3) if a model breaks its budget of size, latency or accuracy."""
    from condensec.builds.gate import judge

    options = {
        "budget": budget, "against": against, "max_drop": max_drop, "data": data, "metric": metric,
        "target": target, "shape": shape, "jobs": jobs,
    }  # fmt: skip
    judged = []
    for rule in _rules(models, options, config):
        console.current().progress(f"checking {rule.model}")
        judged.append(judge(rule))
    passed = all(found.kept for found in judged)
    document = {"schema": 1, "passed": passed, "models": [found.to_json() for found in judged]}
    console.current().result(_verdicts(judged), document)
    return 0 if passed else 3


def _rules(models: list[str] | None, options: dict[str, Any], config: str | None) -> list[Rule]:
    """What is to be checked: the models named, or those of a file."""
    from condensec.builds.rules import FILE, read_rules, rule
    from condensec.errors import ConfigError

    if models and config is not None:
        raise ConfigError("--config lists the models itself", hint="leave out MODEL, or --config")
    if models:
        return [rule(model, options) for model in models]
    if any(options.values()):
        raise ConfigError("no model given", hint="condensec check MODEL.onnx --budget 'size<=4MB'")
    return list(read_rules(Path(config or FILE)))


def _verdicts(judged: list[Judgement]) -> str:
    rows = [
        (
            found.model if number == 0 else "",
            one.budget,
            _figure(one.value, one.unit),
            one.how,
            "kept" if one.kept else "BROKEN",
        )
        for found in judged
        for number, one in enumerate(found.verdicts)
    ]
    return table(("model", "budget", "is", "got by", ""), rows)


def _figure(value: float, unit: str) -> str:
    if unit in ("bytes", ""):
        return f"{value:,.0f} {unit}".strip()
    return f"{value:.4g} {unit}" if unit != "x" else f"{value:.3f}x"


def cmake_dir(json: o.Json = False, quiet: o.Quiet = False, verbose: o.Verbose = 0) -> None:
    """Print the folder of the CMake module and the Bazel rule."""
    from condensec import builds

    folder = Path(builds.__file__).parent
    document = {
        "schema": 1,
        "folder": str(folder),
        "files": sorted(p.name for p in folder.glob("*.[cb][mz]*")),
    }
    console.current().result(folder.as_posix(), document)
