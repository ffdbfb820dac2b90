"""Budgets as goals for the optimiser, and the grid of allowed widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from condensec.hardware.latency import LatencyModel, NodeCost, latency_model
from condensec.hardware.target import Target
from condensec.passes.groups import Analysis, Group
from condensec.passes.select import Choice, carried
from condensec.passes.widths import CostFunction, Goal, NodeShape, Widths
from condensec.specs import KIND_PATTERNS, Budget
from condensec.stages.job import Job

DEFAULT_SHARE = 0.5  # without a budget: towards half the latency, as far as the guard allows


@dataclass(frozen=True)
class Limit:
    """One budget as the optimiser sees it.

    Attributes:
        budget: as given.
        target: for latency, the target it's meant for.
        cost: cost of one node.
        dense: the original's sum over nodes, in the cost's unit.
        limit: what that sum has to come down to.
    """

    budget: Budget
    target: str
    cost: CostFunction
    dense: float
    limit: float

    @property
    def key(self) -> str:
        """Names the goal in reports and checkpoints."""
        return f"{self.budget.kind}:{self.target}" if self.target else self.budget.kind


@dataclass(frozen=True)
class Budgets:
    """All limits of a run.

    Attributes:
        limits: one for each budget, and for latency one for each target.
        asked: False where the user gave none and the default goal is used.
        least: what each limit's sum comes to at the smallest widths there are; empty = not known.
        implied: goals that go with the budgets without being asked for (`condensec.stages.blocks`).
    """

    limits: tuple[Limit, ...]
    asked: bool
    least: Mapping[str, float] = field(default_factory=dict)
    implied: tuple[Goal, ...] = ()

    @property
    def timed(self) -> bool:
        """Whether a measured latency can miss a budget."""
        return any(x.target for x in self.limits)

    def goals(self, correction: Mapping[str, float]) -> list[Goal]:
        """Goals for the optimiser; ``correction`` is measured over predicted share, by limit."""
        asked = [
            Goal(x.key, x.cost, x.limit / correction.get(x.key, 1.0)) for x in self.reachable(correction)
        ]
        return [*asked, *self.implied]

    def reachable(self, correction: Mapping[str, float]) -> list[Limit]:
        """The limits to aim at: one target's that no width reaches doesn't have the others cut in vain."""
        hopeless = [
            x for x in self.limits
            if x.target and self.least.get(x.key, 0.0) * correction.get(x.key, 1.0) > x.limit
        ]  # fmt: skip
        rest = [x for x in self.limits if x not in hopeless]
        return rest if any(x.target for x in rest) else list(self.limits)

    def latency_share(self, choice: Choice, correction: Mapping[str, float]) -> float | None:
        """Predicted share of the first target's latency that is left."""
        for limit, total in zip(self.reachable(correction), choice.totals, strict=False):  # implied ones last
            if limit.target:
                return total / limit.dense * correction.get(limit.key, 1.0) if limit.dense else None
        return None


def read_budgets(
    job: Job, models: Mapping[str, LatencyModel], dense_ms: Mapping[str, float], file_bytes: int
) -> Budgets:
    """Turn the budgets asked for into limits.

    Args:
        job: the job.
        models: latency model by target name.
        dense_ms: the original's latency in ms by target name, for budgets in ms.
        file_bytes: size of the original file.
    """
    limits: list[Limit] = []
    for budget in budgets_of(job):
        if budget.kind == "latency":
            limits.extend(_latency(job, budget, models, dense_ms))
        elif budget.kind == "macs":
            limits.append(_sum_limit(job, budget, _macs, job.analysis.macs()))
        elif budget.kind == "params":
            limits.append(_sum_limit(job, budget, _parameters, count_parameters(job.analysis)))
        else:
            limits.append(_sum_limit(job, budget, _bytes, file_bytes))
    return Budgets(tuple(limits), bool(job.config.budgets))


def budgets_of(job: Job) -> tuple[Budget, ...]:
    """The budgets asked for; without any (and without widths given), the default one."""
    if job.config.budgets or job.config.keep is not None:
        return job.config.budgets
    return (job.config.towards or Budget("latency", DEFAULT_SHARE, True, f"latency<={DEFAULT_SHARE:g}x"),)


def with_least(job: Job, budgets: Budgets, grid: Mapping[str, list[int]]) -> Budgets:
    """The same, knowing what the smallest widths come to: what is above that can't be reached."""
    goals = [Goal(x.key, x.cost, x.limit) for x in budgets.limits]
    widths = Widths(job.analysis, goals).at({name: levels[-1] for name, levels in grid.items()})
    least = {x.key: float(total) for x, total in zip(budgets.limits, widths.totals, strict=True)}
    return replace(budgets, least=least)


def out_of_reach(budgets: Budgets, correction: Mapping[str, float]) -> tuple[str, ...]:
    """A sentence for each latency budget that is set aside."""
    kept = {x.key for x in budgets.reachable(correction)}
    return tuple(
        f"{x.budget.expr} can't be reached on {x.target} at any width that is allowed: the others decide"
        for x in budgets.limits
        if x.key not in kept
    )


def _latency(
    job: Job, budget: Budget, models: Mapping[str, LatencyModel], dense_ms: Mapping[str, float]
) -> list[Limit]:
    found = []
    for target in job.targets:
        cost = _seconds(models[target.name])
        dense = _dense(job, cost)
        share = budget.value if budget.relative else budget.value / dense_ms[target.name]
        found.append(Limit(budget, target.name, cost, dense, share * dense))
    return found


def _sum_limit(job: Job, budget: Budget, cost: CostFunction, whole: float) -> Limit:
    """A limit on a whole of which only the weighted nodes' part can shrink."""
    dense = _dense(job, cost)
    allowed = budget.value * whole if budget.relative else budget.value
    return Limit(budget, "", cost, dense, allowed - max(0.0, whole - dense))


def _dense(job: Job, cost: CostFunction) -> float:
    return float(Widths(job.analysis, [Goal("", cost, 0.0)]).totals.sum())


def _macs(node: NodeShape) -> float:
    return float(node.macs)


def _parameters(node: NodeShape) -> float:
    return float(node.weights)


def _bytes(node: NodeShape) -> float:
    return 4.0 * node.weights


def _seconds(model: LatencyModel) -> CostFunction:
    cache: dict[NodeShape, float] = {}

    def cost(node: NodeShape) -> float:
        found = cache.get(node)
        if found is None:
            found = cache[node] = float(model.node_seconds(NodeCost(**vars(node))))
        return found

    return cost


def count_parameters(analysis: Analysis) -> int:
    """Elements of all initializers, shared ones counted once."""
    return sum(
        value.const_value.size
        for name, value in analysis.model.graph.initializers.items()
        if value.const_value is not None and name not in analysis.normalized.splits
    )


def widths_grid(job: Job) -> dict[str, list[int]]:
    """Allowed unit counts of every group, descending, that keep its axes aligned on every target.

    Layers that may be taken out have the counts 1 and 0.
    """
    grid: dict[str, list[int]] = {}
    for group in job.analysis.groups:
        many = carried(job.analysis, group)
        kind = op_kind(job.analysis, group)
        if not _wanted(group, job.config.patterns):
            grid[group.id] = [group.size]
            continue
        allowed = set(range(group.least, group.size + 1))
        for target in job.targets:
            precision = lower_precision(target, job.config.quantize)
            allowed &= _levels(group, many, kind, target, job.config.align, precision)
        found = sorted(allowed | {group.size}, reverse=True)
        grid[group.id] = found if job.config.keep is None else _uniform(group, found, job.config.keep)
    return {**grid, **{layer.id: [1, 0] for layer in job.layers}}


def _wanted(group: Group, patterns: Sequence[str]) -> bool:
    """Whether ``--patterns`` lets this kind of unit go; neurons are all that have no name of their own."""
    return bool(set(KIND_PATTERNS.get(group.kind, ("neurons",))) & set(patterns))


def lower_precision(target: Target, quantize: str) -> str:
    """The precision that widths have to suit beside fp32: what a target is likely to get."""
    wanted = target.precisions[0] if quantize == "auto" else quantize
    return wanted if wanted in target.precisions else "fp32"


def _levels(
    group: Group, many: int, kind: str, target: Target, align: int | None, precision: str = "fp32"
) -> set[int]:
    """Counts one target likes. A unit that carries several channels (a head of 64) aligns by itself.

    A lower precision may be pickier: int8 kernels for VNNI take 16 channels at once, and fewer are slower.
    """
    step = align if align is not None else target.alignment(kind, precision)
    if many == 1:
        levels = set(target.levels(group.size, kind, "fp32", align))
        return {n for n in levels if n % step == 0} | {group.size} if precision != "fp32" else levels
    return {n for n in range(1, group.size + 1) if n * many % step == 0} | {group.size}


def _uniform(group: Group, allowed: list[int], keep: float) -> list[int]:
    """All, and the largest allowed count that is at most the asked share (else the smallest there is)."""
    wanted = max(1, int(group.size * keep + 1e-9))
    below = [n for n in allowed if n <= wanted]
    return sorted({group.size, below[0] if below else allowed[-1]}, reverse=True)


def op_kind(analysis: Analysis, group: Group) -> str:
    """What the group's axes feed: ``conv``, ``depthwise`` or ``matmul``, the most demanding of them."""
    ids = {a.id for a in group.atoms}
    kinds = set()
    for cost in analysis.context.costs:
        for term in (cost.inputs, cost.outputs):
            if term is not None and ids & {a.id for a in analysis.axes.atoms(term)}:
                conv = "Conv" in cost.node.op_type
                kinds.add("matmul" if not conv else "conv" if cost.groups == 1 else "depthwise")
    return next((kind for kind in ("depthwise", "conv") if kind in kinds), "matmul")


def latency_models(job: Job) -> dict[str, LatencyModel]:
    """A latency model for each target that needs one.

    Without a budget of latency that's only the targets that can't be measured here: timing the nodes of a
    large model at many widths takes minutes.
    """
    shapes = job.loaded.signature.sample_shapes(job.data.splits.calibration)
    timed = any(budget.kind == "latency" for budget in budgets_of(job))
    needed = [target for target in job.targets if timed or not target.measurable()]
    return {target.name: latency_model(target, job.loaded.path, shapes) for target in needed}
