"""The command that times graphs: bench."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from condensec import console
from condensec.commands import options as o
from condensec.commands.tables import table

if TYPE_CHECKING:
    from condensec.hardware.breakdown import Breakdown
    from condensec.hardware.measurement import Comparison, Measurement


def _option(metavar: str, text: str, panel: str, *flags: str) -> Any:
    return typer.Option(*flags, metavar=metavar, help=text, rich_help_panel=panel, show_default=False)


_Other = Annotated[
    str | None, typer.Argument(metavar="OTHER", help="A model to compare with.", show_default=False)
]
_Threads = Annotated[str | None, _option("N", "Threads. Default: 1.", o.HOW, "-j", "--jobs")]
_Provider = Annotated[
    str | None,
    _option(
        "NAME",
        "Execution provider: cpu (the default), tensorrt, cuda, openvino, xnnpack, coreml, ...",
        o.HOW,
        "--ep",
    ),
]
_Profile = Annotated[
    bool,
    typer.Option(
        "--profile", help="Also where the time goes, by operator and by layer.", rich_help_panel=o.HOW,
        show_default=False,
    ),
]  # fmt: skip
_Html = Annotated[
    str | None, _option("FILE", "A page with the figures and where the time goes.", o.OUT, "--html")
]
_ROWS = 15  # layers in the table; all are in the JSON


def bench(
    model: o.Model,
    other: _Other = None,
    shape: o.Shape = None,
    ep: _Provider = None,
    profile: _Profile = False,
    jobs: _Threads = None,
    seed: o.Seed = None,
    html: _Html = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Time a model, or two against each other (interleaved, with a 95% interval of the ratio)."""
    from condensec import io
    from condensec.commands.steps import sample_shapes
    from condensec.config import configure
    from condensec.hardware import bench as clock
    from condensec.hardware import breakdown, providers
    from condensec.hardware.protocol import Protocol

    checked = configure(model=model, jobs="1" if jobs is None else jobs, seed=seed)
    protocol = Protocol(threads=checked.jobs, seed=checked.seed, providers=providers.resolve(ep), memory=True)
    paths = [Path(path) for path in (model, other) if path is not None]
    for path in paths:
        io.load(path)  # a bad file is refused before anything runs
    shapes = sample_shapes(str(paths[-1]), shape)
    both = None
    if other is None:
        measured = [clock.measure(paths[0], shapes=shapes, protocol=protocol)]
    else:
        both = clock.compare(paths[0], paths[1], shapes=shapes, protocol=protocol)
        measured = [both.a, both.b]
    document: dict[str, Any] = {"schema": 1, **(measured[0].to_json() if both is None else both.to_json())}
    parts = [_times(measured), *_verdict(both), _where(measured[0])]  # the verdict is the second
    parts.append("\n".join(f"$ {one.command}" for one in measured))
    if profile or html is not None:
        feeds = clock.make_feeds(paths[-1], shapes, protocol.seed)
        found = breakdown.take(paths, feeds, protocol=protocol)
        document["profile"] = found.to_json()
        parts += _tables(found)
        if html is not None:
            _page(Path(html), document, _where(measured[0]), parts[1] if both is not None else "")
    console.current().result("\n\n".join(parts), document)


def _times(measured: Sequence[Measurement]) -> str:
    head = ("model", "median ms", "min", "p90", "p99", "first run", "load", "bytes", "memory", "clock")
    rows = []
    for one in measured:
        spread = one.cpu if one.basis == "cpu" else one.wall
        times = (
            spread.median, spread.min, spread.p90, spread.p99, one.first_run, one.session_creation
        )  # fmt: skip
        memory = "" if one.peak_bytes is None else f"{one.peak_bytes / 2**20:.1f} MiB"
        shown = (f"{1e3 * t:.3f}" for t in times)
        rows.append((one.name, *shown, f"{one.model_bytes:,}", memory, one.basis))
    return table(head, rows)


def _verdict(both: Comparison | None) -> list[str]:
    """Faster or slower only where the interval says so."""
    if both is None:
        return []
    low, high = both.ci95
    verdict = both.verdict if both.verdict == "no difference" else f"{both.b.name} is {both.verdict}"
    return [f"ratio {both.ratio:.3f}, 95% interval [{low:.3f}, {high:.3f}], {both.pairs} pairs: {verdict}"]


def _where(one: Measurement) -> str:
    """The machine in a line."""
    place = one.environment
    cores = "" if place.cores is None else f", pinned to core {', '.join(map(str, place.cores))}"
    load = "" if place.load is None else f", load {place.load:.1f}"
    threads = f"{place.threads} thread{'s' * (place.threads > 1)}"
    return f"onnxruntime {place.runtime}, {place.provider}, {place.isa}, {threads}{cores}{load}"


def _tables(found: Breakdown) -> list[str]:
    """By operator, and the layers that take longest."""
    two = found.two
    times = ("before, us", "after, us") if two else ("us",)
    parts = []
    for title, changes in (("operator", found.operators), ("layer", found.layers[:_ROWS])):
        rows = []
        for change in changes:
            before, after = (("" if t is None else f"{1e6 * t:.1f}") for t in (change.before, change.after))
            nodes = "->".join(map(str, change.counts if two else change.counts[:1]))
            rows.append((change.what, *((before, after) if two else (before,)), nodes))
        parts.append(table((title, *times, "nodes"), rows))
    more = len(found.layers) - _ROWS
    return [*parts, *([f"and {more} layers more (--json)"] if more > 0 else [])]


def _page(path: Path, document: dict[str, Any], place: str, headline: str) -> None:
    from condensec.report import write_text
    from condensec.report.bench import page

    write_text(path, page(document, place, headline))
