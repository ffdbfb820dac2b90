"""Numbers and sentences for readers, shared by the terminal table and the HTML report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath

from condensec.report.model import (
    MEASURED,
    STATUSES,
    Budget,
    GroupSummary,
    Guard,
    MetricValue,
    PatternResult,
    Report,
    TargetResult,
)

MISSING = "–"
SHARES = ("top1", "top5", "agreement")  # metrics that are a share of the samples


def count(value: float) -> str:
    """A count with three significant digits: 272474 gives ``272 k``."""
    for factor, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= factor * 0.9995:
            return _digits(value / factor) + unit
    return f"{value:.0f}"


def size(value: float) -> str:
    """Bytes in powers of ten: 1097000 gives ``1.10 MB``."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= factor * 0.9995:
            return f"{_digits(value / factor)} {unit}"
    return f"{value:.0f} B"


def milliseconds(value: float | None) -> str:
    """A latency in milliseconds with three significant digits, without the unit."""
    if value is None:
        return MISSING
    return _digits(value) if value >= 0.9995 else f"{value:.3f}"


def seconds(value: float | None) -> str:
    """A duration: ``0.05 s``, ``71.2 s``, ``12 min 5 s``, ``2 h 3 min``."""
    if value is None:
        return MISSING
    if value < 100:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def total_seconds(report: Report) -> float | None:
    """Wall time of the run; the sum of its stages where it isn't known."""
    if not report.timings:
        return None
    return report.timings.get("total", sum(report.timings.values()))


def ratio(value: float | None) -> str:
    """A share of the original: ``0.446x``."""
    return MISSING if value is None else f"{value:.3f}x"


def interval(bounds: tuple[float, float] | None, digits: int = 3) -> str:
    """A 95% interval: ``[0.440, 0.450]``; empty when there is none."""
    return "" if bounds is None else f"[{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"


def small(value: float | None) -> str:
    """An error or a tolerance with two significant digits: ``3.1e-06``."""
    return MISSING if value is None else f"{value:.2g}"


def change(before: float | None, after: float | None) -> str:
    """Relative change in percent: ``-63%``."""
    if not before or after is None:
        return MISSING
    percent = 100 * (after - before) / before
    if abs(percent) < 0.05:
        return "0%"
    return f"{percent:+.0f}%" if abs(percent) >= 10 else f"{percent:+.1f}%"


def in_percent(metric: MetricValue) -> bool:
    """Whether the metric is a share of the samples, which readers know in per cent."""
    return metric.name in SHARES


def in_points(metric: MetricValue) -> bool:
    """Whether a point of the metric is a hundredth."""
    return metric.unit_points == 100.0


def metric_value(value: float | None, metric: MetricValue) -> str:
    """A value of `metric`: ``93.06%`` for a share, ``0.9306`` for anything else."""
    if value is None:
        return MISSING
    if in_percent(metric):
        return f"{100 * value:.{2 if metric.samples >= 1000 else 1}f}%"
    return f"{value:.4f}" if in_points(metric) else f"{value:.4g}"


def metric_interval(metric: MetricValue) -> str:
    """The metric's 95% interval in the notation of its value; empty when there is none."""
    if metric.ci95 is None:
        return ""
    low, high = metric.ci95
    if in_percent(metric):
        return f"[{100 * low:.1f}, {100 * high:.1f}]"
    return f"[{low:.4g}, {high:.4g}]"


def change_interval(metric: MetricValue) -> str:
    """The 95% interval of the metric's change, in points where it has them; empty when there is none."""
    if metric.change_ci95 is None:
        return ""
    low, high = (metric.unit_points * x for x in metric.change_ci95)
    return f"[{low:+.2f}, {high:+.2f}]" if in_points(metric) else f"[{low:+.3g}, {high:+.3g}]"


def metric_label(metric: MetricValue) -> str:
    """The metric in a reader's words."""
    return metric.label or metric.name


def points(before: float | None, after: float | None, metric: MetricValue) -> str:
    """The difference in points, ``-0.36 points``, or in the metric's own unit, ``-0.0123``."""
    if before is None or after is None:
        return MISSING
    difference = (after - before) * metric.unit_points
    if not in_points(metric):
        return f"{difference:+.3g}" if difference else "0"
    text = f"{difference:+.2f}" if abs(difference) >= 0.005 else "0"
    return f"{text} point{'' if text in ('+1.00', '-1.00') else 's'}"


def status_text(report: Report) -> str:
    """What the status means."""
    return STATUSES.get(report.status, report.status.replace("_", " "))


def latency_how(target: TargetResult) -> str:
    """How the target's latency was got."""
    return target.latency_how or target.verified


def speed(target: TargetResult) -> str:
    """What may be said about a target's speed; a win is claimed only if the interval excludes 1."""
    if target.ratio is None or target.ratio <= 0:
        return "latency unknown"
    how = latency_how(target)
    aside = "" if how == MEASURED else f" ({how})"
    if target.ci95 is not None and target.ci95[0] <= 1 <= target.ci95[1]:
        return f"as fast as before{aside}"
    if target.ratio < 1:
        return f"{1 / target.ratio:.2f}x faster{aside}"
    return f"{target.ratio:.2f}x slower{aside}" if target.ratio > 1 else f"as fast as before{aside}"


def headline(report: Report) -> str:
    """The whole run in one sentence."""
    parts = [f"{speed(t)} on {name}" for name, t in report.targets.items() if t.ratio is not None]
    parts.append(f"{_fewer(report.before.params, report.after.params)} parameters")
    parts.append(f"{_fewer(report.before.macs, report.after.macs)} MACs")
    before, after = report.before.metric, report.after.metric
    if before is not None and after is not None and after.value is not None:
        moved = points(before.value, after.value, after)
        parts.append(f"{metric_label(after)} {metric_value(after.value, after)} ({moved})")
    return ", ".join(parts)


def budget_text(budget: Budget) -> str:
    """A budget, or a goal that nobody asked for, and what became of it."""
    where = f" on {budget.target}" if budget.target else ""
    reached = "" if budget.value is None else f", reached {budget.value:.3g}"
    verdict = "met" if budget.met else "not met" if budget.asked else "not reached, and not required"
    return f"{budget.expr}{where}: {verdict}{reached}"


def notes(report: Report) -> list[str]:
    """The report's notes, without what is said of the data anyway."""
    said = report.data.note if report.data is not None else ""
    return [note for note in report.notes if note != said]


_KINDS = {
    "channel": "channels",
    "head": "heads",
    "kv_head": "groups of heads that share keys and values",
    "head_dim": "features of heads",
    "neuron": "neurons",
    "hidden": "features of the hidden state",
    "expert": "experts",
    "rnn_unit": "recurrent units",
}


def kinds_text(groups: Iterable[GroupSummary]) -> str:
    """``48 of 96 channels, 6 of 12 heads``: what is left of each kind; empty where nothing was cut."""
    found: dict[str, list[int]] = {}
    for group in groups:
        kept, size = found.setdefault(group.kind, [0, 0])
        found[group.kind] = [kept + group.kept, size + group.size]
    cut = {kind: sizes for kind, sizes in found.items() if sizes[0] < sizes[1]}
    return ", ".join(f"{kept:,} of {n:,} {_KINDS.get(kind, kind)}" for kind, (kept, n) in cut.items())


def pattern_text(result: PatternResult) -> str:
    """Zeros in the file written, and what they are worth."""
    asked = "" if result.reached else f" of {result.share_asked:.1%} asked for"
    sizes = f"{size(result.bytes)}, by zlib {size(result.compressed_bytes)}"
    wrong = f", {result.violations} violations" if not result.name.startswith("unstructured") else ""
    return (
        f"{result.name}: {result.share_reached:.1%}{asked} of {count(result.weights)} weights in "
        f"{result.layers} layers{wrong}; {sizes}, as sparse tensors {size(result.sparse_bytes)} (estimate); "
        f"{'; '.join(result.notes)}"
    )


def model_name(report: Report) -> str:
    """The original file's name without its folders."""
    return PurePath(report.model.file).name or report.model.file


def guard_text(guard: Guard) -> str:
    """The accuracy guard and what became of it."""
    if guard.max_drop is None:
        return "no guard"
    limit = f"at most {guard.max_drop:g} point{'' if guard.max_drop == 1 else 's'} lost"
    if guard.drop is None:
        return limit
    verb = (
        f"lost {guard.drop:.2f}"
        if guard.drop > 0
        else f"gained {-guard.drop:.2f}"
        if guard.drop
        else "lost 0"
    )
    return f"{limit}; {verb} on the {guard.split} split"


def _fewer(before: float, after: float) -> str:
    if not before or before == after:
        return "as many"
    share = 100 * abs(before - after) / before
    return f"{share:.0f}% {'fewer' if after < before else 'more'}"


def _digits(value: float) -> str:
    """Three significant digits without an exponent."""
    size = abs(value)
    return f"{value:.2f}" if size < 9.995 else f"{value:.1f}" if size < 99.95 else f"{value:.0f}"
