"""The closing table: the whole result in 80 columns."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

from condensec.report import format as fmt
from condensec.report.model import Figures, Report, TargetResult, Verification

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

WIDTH = 80
_GOOD, _BAD, _DIM = "green", "red", "dim"


def text(report: Report, *, width: int = WIDTH, color: bool = False) -> str:
    """The closing table as text, every line at most `width` columns.

    Args:
        report: what to show.
        width: columns; at least 60.
        color: with ANSI colours.
    """
    from rich.console import Console

    buffer = StringIO()
    console = Console(
        file=buffer,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        highlight=False,
        emoji=False,
    )
    console.print(renderable(report))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def renderable(report: Report) -> RenderableType:
    """The closing table for a rich console."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    style = _GOOD if report.status == "ok" else "yellow"
    title = Text.assemble(
        (fmt.model_name(report), "bold"), "  ", (report.status, style), f": {fmt.status_text(report)}"
    )
    parts: list[RenderableType] = [title, "", _figures_table(report)]
    if report.targets:
        parts += ["", _targets_table(report)]
    if report.pareto:
        parts += ["", _front_table(report)]
    parts += ["", *(_line(label, body, style) for label, body, style in _facts(report))]
    return Padding(Group(*parts), (0, 1))


def _figures_table(report: Report) -> Table:
    table = _table("", ">before", ">after", ">change", "")
    before, after = report.before, report.after
    for label, one, two, show in (
        ("parameters", before.params, after.params, fmt.count),
        ("MACs", before.macs, after.macs, fmt.count),
        ("bytes", before.bytes, after.bytes, fmt.size),
    ):
        _row(table, label, show(one), show(two), fmt.change(one, two), "")
    _metric_rows(table, before, after)
    return table


def _metric_rows(table: Table, before: Figures, after: Figures) -> None:
    one, two = before.metric, after.metric
    if one is None or two is None:
        _row(table, "accuracy", fmt.MISSING, fmt.MISSING, fmt.MISSING, "not measured")
        return
    values = (fmt.metric_value(one.value, one), fmt.metric_value(two.value, two))
    where = f"{two.split}, n={two.samples}"
    _row(table, fmt.metric_label(two), *values, fmt.points(one.value, two.value, two), where)
    if one.ci95 or two.ci95:
        intervals = (fmt.metric_interval(one), fmt.metric_interval(two))
        _row(table, "  95% interval", *intervals, fmt.change_interval(two), "", style=_DIM)


def _targets_table(report: Report) -> Table:
    table = _table("target", "", ">before ms", ">after ms", ">ratio", "95% interval", "how")
    for name, target in report.targets.items():
        _row(table, *_target_row(name, target))
    return table


def _target_row(name: str, target: TargetResult) -> tuple[str, ...]:
    if target.unavailable:
        return (name, "", fmt.MISSING, fmt.MISSING, fmt.MISSING, "", "unavailable")
    return (
        name,
        target.precision,
        fmt.milliseconds(target.latency_ms.before),
        fmt.milliseconds(target.latency_ms.after),
        fmt.ratio(target.ratio),
        fmt.interval(target.ci95) or fmt.MISSING,
        fmt.latency_how(target),
    )


def _front_table(report: Report) -> Table:
    metric = report.after.metric
    name = fmt.metric_label(metric) if metric is not None else "metric"
    table = _table("front", ">MACs", ">parameters", ">ratio", f">{name}", "how")
    for one in report.pareto:
        value = fmt.MISSING if metric is None else fmt.metric_value(one.metric, metric)
        sizes = (fmt.count(one.macs), fmt.count(one.params), fmt.ratio(one.ratio))
        _row(table, f"{one.n:02d}", *sizes, value, one.verified)
    return table


def _facts(report: Report) -> list[tuple[str, str, str]]:
    """(label, sentence, style) of everything below the tables."""
    facts = []
    for budget in report.budgets:
        style = _GOOD if budget.met else _BAD if budget.asked else ""
        facts.append(("budget" if budget.asked else "goal", fmt.budget_text(budget), style))
    if report.guard is not None:
        facts.append(("guard", fmt.guard_text(report.guard), "" if report.guard.kept else _BAD))
    if left := fmt.kinds_text(report.groups):
        facts.append(("left", left, ""))
    facts += [("zeros", fmt.pattern_text(p), "" if p.reached else "yellow") for p in report.patterns]
    facts += [("proof", line, style) for line, style in proof_lines(report.verification)]
    facts += [
        (name, target.unavailable, _BAD) for name, target in report.targets.items() if target.unavailable
    ]
    if report.data is not None and report.data.synthetic and report.data.note:
        facts.append(("data", report.data.note, "yellow"))
    facts += [("warning", warning, "yellow") for warning in report.warnings]
    facts += [("note", note, "") for note in fmt.notes(report)]
    if report.timings:
        facts.append(("time", _time_text(report), ""))
    return facts


def proof_lines(verification: Verification) -> list[tuple[str, str]]:
    """(sentence, style) for each check of the proof."""
    lines = []
    for label, check in (("exact", verification.exact), ("approximate", verification.approximate)):
        if check is None or not (check.groups or check.layers):
            continue
        error = (
            "" if check.max_abs_error is None else f", largest difference {fmt.small(check.max_abs_error)}"
        )
        word = "agree with the masked original" if check.passed else "DIFFER from the masked original"
        groups = f"{check.groups} {label} group{'' if check.groups == 1 else 's'}" if check.groups else ""
        layers = f"{check.layers} removed layer{'' if check.layers == 1 else 's'}" if check.layers else ""
        groups = " and ".join(filter(None, (groups, layers)))
        lines.append((f"{groups} {word}{error}", _GOOD if check.passed else _BAD))
    failed = [run.file for run in verification.runs if not run.passed]
    if failed:
        lines.append((f"does not run: {', '.join(failed)}", _BAD))
    elif verification.runs:
        files = len({run.file for run in verification.runs})
        lines.append(
            (
                f"{files} emitted graph{'' if files == 1 else 's'} ran in {len(verification.runs)} checks",
                _GOOD,
            )
        )
    return lines


def _time_text(report: Report) -> str:
    total = fmt.seconds(fmt.total_seconds(report))
    memory = f", peak memory {report.peak_rss_mb:.0f} MiB" if report.peak_rss_mb else ""
    return f"{total}{memory}"


def _line(label: str, body: str, style: str) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=10, style=_DIM, overflow="fold")
    grid.add_column(overflow="fold")
    grid.add_row(Text(label), Text(body, style=style))
    return grid


def _table(*columns: str) -> Table:
    """A plain table; a column name that starts with ``>`` is set flush right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold", show_edge=False)
    for i, name in enumerate(columns):
        table.add_column(
            name.removeprefix(">"),
            justify="right" if name.startswith(">") else "left",
            no_wrap=0 < i < len(columns) - 1,
            overflow="fold",
        )
    return table


def _row(table: Table, *cells: str, style: str = "") -> None:
    from rich.text import Text

    table.add_row(*(Text(cell) for cell in cells), style=style)  # Text: names may look like rich's markup
