"""Which charts the report shows, and what is in them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from markupsafe import Markup

from condensec.report import format as fmt
from condensec.report import svg
from condensec.report.model import (
    Cycle,
    GroupSummary,
    Guard,
    Healing,
    LayerCut,
    LossDetail,
    MetricValue,
    Report,
    TargetResult,
)
from condensec.report.values import NodeTime

MOST_NODES = 200  # rows of the table of nodes


def metric_by_cycle(report: Report) -> Markup:
    """The metric after each cut and after each healing, with the original and the guard as lines."""
    metric = report.after.metric or report.before.metric
    if metric is None:
        return Markup("")

    def mark(cycle: Cycle, what: str, value: float | None) -> svg.Mark:
        said = f"cycle {cycle.n}, {what}: {fmt.metric_value(value, metric)}{_fate(cycle)}"
        return svg.Mark(cycle.n, value, said, not cycle.accepted)

    baseline = report.guard.baseline if report.guard is not None else None
    start = svg.Mark(0, baseline, f"original: {fmt.metric_value(baseline, metric)}")
    cut = tuple(mark(c, "after the cut", c.metric_pruned) for c in report.cycles)
    healed = tuple(mark(c, "healed", c.metric_healed) for c in report.cycles)
    series = (svg.Series("after the cut", "s-cut", cut), svg.Series("healed", "s-after", (start, *healed)))
    label = fmt.metric_label(metric)
    title = f"{label} on the validation split per cycle, after the cut and after healing"
    show = _share_text if fmt.in_percent(metric) else "{:.4g}".format
    return svg.line_chart(svg.Chart(title, series, "cycle", show, _guard_rules(report.guard, metric)))


def share_by_cycle(report: Report) -> Markup:
    """MACs and latency left after each cycle, as a share of the original's."""
    start = svg.Mark(0, 1.0, "original: 100%")

    def mark(cycle: Cycle, what: str, value: float | None) -> svg.Mark:
        said = "" if value is None else f"cycle {cycle.n}: {value:.1%} of the {what}{_fate(cycle)}"
        return svg.Mark(cycle.n, value, said, not cycle.accepted)

    series = [svg.Series("MACs", "s-after", (start, *(mark(c, "MACs", c.macs) for c in report.cycles)))]
    if any(c.latency is not None for c in report.cycles):
        latency = (start, *(mark(c, "latency", c.latency) for c in report.cycles))
        series.append(svg.Series("latency", "s-latency", latency))
    title = "Share of the original's MACs and latency that is left after each cycle"
    return svg.line_chart(svg.Chart(title, tuple(series), "cycle", _share_text, zero=True))


def pareto_axis(report: Report) -> str:
    """What the sizes on the Pareto plot are: latency where every point has one, otherwise MACs."""
    known = all(point.ratio is not None for point in report.pareto)
    return "share of the latency left" if known else "share of the MACs left"


def pareto(report: Report) -> Markup:
    """The metric of each model written against its size, with the original and the guard."""
    metric = report.after.metric or report.before.metric
    if metric is None or not report.pareto:
        return Markup("")
    label = pareto_axis(report)
    by_latency = "latency" in label
    marks = []
    for point in report.pareto:
        share = point.ratio if by_latency else point.macs / max(1, report.before.macs)
        said = f"model {point.n}: {share or 0:.3f} of the original, {fmt.metric_value(point.metric, metric)}"
        marks.append(svg.Mark(share or 0.0, point.metric, said))
    marks.sort(key=lambda mark: mark.x)
    before = report.before.metric.value if report.before.metric is not None else None
    start = svg.Mark(1.0, before, f"original: {fmt.metric_value(before, metric)}", hollow=True)
    series = (svg.Series("models", "s-after", (*marks, start)),)
    show = _share_text if fmt.in_percent(metric) else "{:.4g}".format
    title = f"{fmt.metric_label(metric)} against the {label}, one point for each model"
    guard = None if report.guard is None else replace(report.guard, baseline=before)
    rules = _guard_rules(guard, metric)
    return svg.line_chart(svg.Chart(title, series, label, show, rules, whole_x=False))


@dataclass(frozen=True)
class NodeRows:
    """The nodes of a target that are worth a row. `rest` is what the others take, before and after, in ms."""

    rows: tuple[NodeTime, ...]
    top: float
    rest: tuple[float, float] | None


def node_rows(target: TargetResult) -> NodeRows:
    """The slowest nodes, before or after; what is below a thousandth of the sum is added up."""
    times = [(max(node.before_ms or 0.0, node.after_ms or 0.0), node) for node in target.nodes]
    floor = sum(slowest for slowest, _ in times) / 1000
    rows = [node for slowest, node in times if slowest >= floor][:MOST_NODES]
    others = [node for node in target.nodes if node not in rows]
    rest = (sum(n.before_ms or 0.0 for n in others), sum(n.after_ms or 0.0 for n in others))
    return NodeRows(tuple(rows), max((t for t, _ in times), default=0.0) or 1.0, rest if others else None)


def loss_curve(healing: Healing) -> Markup:
    """The healing loss over its steps."""
    curve = healing.loss_curve
    step = (healing.steps or len(curve)) / max(1, len(curve))
    marks = tuple(svg.Mark((i + 1) * step, value) for i, value in enumerate(curve))
    series = (svg.Series("loss", "s-after", marks),)
    return svg.line_chart(
        svg.Chart("Training loss while healing", series, "step", "{:.3g}".format, zero=True)
    )


def layer_strip(layer: LayerCut) -> Markup:
    """One layer's output units: which stay."""
    if layer.before <= 0:
        return Markup("")
    if layer.removed:
        return svg.strip(layer.before, (), "the whole layer was removed")
    runs = layer.kept or (((0, layer.after - 1),) if layer.after else ())
    if layer.reason:
        return svg.strip(layer.before, runs, f"frozen: {layer.reason}", "frozen")
    return svg.strip(layer.before, runs, f"{layer.after} of {layer.before} kept")


def target_ratio(report: Report, name: str) -> Markup:
    """One target's latency ratio, with its interval and its budget."""
    target = report.targets[name]
    if target.ratio is None:
        return Markup("")
    said = f"{fmt.ratio(target.ratio)} {fmt.interval(target.ci95)}".strip()
    title = f"latency on {name}: {said} of the original, {fmt.latency_how(target)}"
    return svg.ratio_mark(target.ratio, target.ci95, _latency_limit(report, name), title)


@dataclass(frozen=True)
class HeatCell:
    """One cell of the heat map: `heat` from 0 to 1, `chosen` where the plan's cut lies."""

    text: str
    heat: float
    chosen: bool
    title: str = ""


@dataclass(frozen=True)
class HeatRow:
    """One group of the heat map."""

    id: str
    group: GroupSummary | None
    cells: tuple[HeatCell, ...]


@dataclass(frozen=True)
class HeatMap:
    """Loss per group and kept share. `top` is the loss at full heat."""

    shares: tuple[str, ...]
    rows: tuple[HeatRow, ...]
    top: str


def heat_map(report: Report) -> HeatMap | None:
    """The sensitivities as a table of heats; None when nothing was measured.

    Heat is the square root of the loss over the largest loss, so that small differences among the
    harmless groups can still be seen. Shares that only a few groups were measured at (one unit of 64,
    one of 24) stand together in a last column.
    """
    losses = report.sensitivity
    known = [value for row in losses.values() for value in row.values() if value is not None]
    if not known:
        return None
    common = Counter(share for row in losses.values() for share in row)
    shares = sorted((s for s, n in common.items() if 2 * n >= len(losses)), key=float, reverse=True)
    some_fewer = any(set(row) - set(shares) for row in losses.values())
    top = max(max(known), 1e-12)
    groups = {group.id: group for group in report.groups}
    details = report.sensitivity_detail
    rows = []
    for name, row in losses.items():
        rest = sorted((s for s in row if s not in shares), key=float)
        columns = [
            *(s if s in row else None for s in shares),
            *([rest[0] if rest else None] if some_fewer else []),
        ]
        rows.append(
            HeatRow(
                name, groups.get(name), _heat_cells(row, columns, groups.get(name), top, details.get(name))
            )
        )
    names = (*(f"{float(share):.4g}" for share in shares), *(["fewer"] if some_fewer else []))
    return HeatMap(names, tuple(rows), _loss_text(top, top))


def _heat_cells(
    row: Mapping[str, float | None],
    columns: list[str | None],
    group: GroupSummary | None,
    top: float,
    details: Mapping[str, LossDetail] | None = None,
) -> tuple[HeatCell, ...]:
    nearest = None
    if group is not None and 0 < group.kept < group.size:
        nearest = min(row, key=lambda share: abs(float(share) - group.kept / group.size), default=None)
    cells = []
    for share in columns:
        value = None if share is None else row[share]
        heat = 0.0 if value is None else (max(0.0, value) / top) ** 0.5
        text = fmt.MISSING if value is None else _loss_text(value, top)
        said = "" if share is None else f"{float(share):.3g} kept" + _detail_text((details or {}).get(share))
        cells.append(HeatCell(text, round(heat, 3), share is not None and share == nearest, said))
    return tuple(cells)


def _detail_text(found: LossDetail | None) -> str:
    """Interval and metric, for the tip of a cell."""
    if found is None:
        return ""
    interval = "" if found.ci95 is None else f"; 95%: {found.ci95[0]:.3g} to {found.ci95[1]:.3g}"
    return interval + ("" if found.metric is None else f"; metric {found.metric:.4g}")


def _loss_text(value: float, top: float) -> str:
    """As many decimals as the largest loss is worth, so that a column can be compared at a glance."""
    if top >= 100:
        return f"{value:.0f}"
    decimals = max(0, 2 - math.floor(math.log10(top)))
    return f"{value:.{decimals}f}" if decimals <= 5 else f"{value:.1e}"


def _share_text(value: float) -> str:
    return f"{100 * value:.4g}%"


def _fate(cycle: Cycle) -> str:
    return "" if cycle.accepted else f" ({cycle.note or 'rolled back'})"


def _guard_rules(guard: Guard | None, metric: MetricValue) -> tuple[svg.Rule, ...]:
    if guard is None or guard.baseline is None:
        return ()
    rules = [svg.Rule("original", guard.baseline)]
    if guard.max_drop is not None:
        drop = guard.max_drop / metric.unit_points * (1 if metric.higher_is_better else -1)
        rules.append(svg.Rule("guard", guard.baseline - drop, "limit", below=True))
    return tuple(rules)


def _latency_limit(report: Report, name: str) -> float | None:
    """The latency budget of a target as a ratio, when it was given as one."""
    for budget in report.budgets:
        left, _, right = budget.expr.replace(" ", "").partition("<=")
        if left == "latency" and right.endswith("x") and budget.target in ("", name):
            try:
                return float(right[:-1])
            except ValueError:
                return None
    return None
