"""Report: everything one compile found out, as one immutable value.

`Report.to_json` is the document of report.json (schema 1). Programs outside this project read it: fields
may be added, none is renamed or removed without a new schema number. Its sections are in
`condensec.report.figures` (with the words that say how a figure was got), `condensec.report.course`,
`condensec.report.cuts` and `condensec.report.values`; all of them can be imported from here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from condensec import documents
from condensec.documents import write_text
from condensec.errors import ConfigError
from condensec.plan import FrozenAxis
from condensec.report.codec import decode, encode
from condensec.report.course import Budget, Check, Cycle, GraphRun, Guard, Healing, Untrained, Verification
from condensec.report.cuts import GroupSummary, LayerCut, LossDetail, PatternResult, group_summaries, runs
from condensec.report.figures import (
    EMULATED,
    MEASURED,
    MODELLED,
    PARSED,
    DataSummary,
    Figures,
    Interval,
    Latency,
    MetricValue,
    ModelInfo,
    TargetResult,
)
from condensec.report.values import GraphNode, NodeTime, ParetoPoint

__all__ = [
    "EMULATED",
    "MEASURED",
    "MODELLED",
    "PARSED",
    "SCHEMA",
    "STATUSES",
    "Budget",
    "Check",
    "Cycle",
    "DataSummary",
    "Figures",
    "GraphNode",
    "GraphRun",
    "GroupSummary",
    "Guard",
    "Healing",
    "Interval",
    "Latency",
    "LayerCut",
    "LossDetail",
    "MetricValue",
    "ModelInfo",
    "NodeTime",
    "ParetoPoint",
    "PatternResult",
    "Report",
    "TargetResult",
    "Untrained",
    "Verification",
    "group_summaries",
    "read_report",
    "runs",
    "write_text",
]

SCHEMA = 1
STATUSES = {
    "ok": "budget met, guard kept",
    "budget_not_met": "budget not reached; this is the best safe model",
    "dry_run": "planned only; nothing was cut",
    "analyzed": "measured only; nothing was planned or cut",
    "interrupted": "stopped at a safe point; run again with --resume",
}


@dataclass(frozen=True)
class Report:
    """Everything one compile found out. See `condensec.report.figures` for how they were got.

    Attributes:
        status: a key of `STATUSES`.
        before, after: the original and the healed fp32 graph.
        targets: name -> what was emitted for it, in the order in which the user named them.
        sensitivity: group -> kept share ("0.5") -> loss when only that share of the group is kept.
        sensitivity_unit: what that loss is.
        sensitivity_detail: the same with intervals and metric, where it was measured.
        layer_sensitivity: residual block, by its last node -> loss when it is taken out whole.
        sensitivity_samples: samples that the map was measured on.
        graph: the original's graph as boxes in topological order; empty where it would be too large to draw.
        timings: stage -> seconds, in the order of the line, ending with ``total``.
        stage_rss_mb: stage -> peak resident memory in MiB when the stage ended.
        pareto: models on the way to this one, the largest first (``--pareto``).
        plan_sha256: `Plan.digest` of the plan that was carried out.
        command: the exact command line.
        created: when the run ended, ISO 8601 with zone.
    """

    model: ModelInfo
    seed: int
    status: str
    before: Figures
    after: Figures
    targets: Mapping[str, TargetResult] = field(default_factory=dict)
    cycles: tuple[Cycle, ...] = ()
    sensitivity: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    sensitivity_unit: str = "loss"
    sensitivity_detail: Mapping[str, Mapping[str, LossDetail]] = field(default_factory=dict)
    layer_sensitivity: Mapping[str, LossDetail] = field(default_factory=dict)
    sensitivity_samples: int = 0
    verification: Verification = field(default_factory=Verification)
    timings: Mapping[str, float] = field(default_factory=dict)
    peak_rss_mb: float = 0.0
    environment: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    stage_rss_mb: Mapping[str, float] = field(default_factory=dict)
    budgets: tuple[Budget, ...] = ()
    guard: Guard | None = None
    healing: Healing | None = None
    data: DataSummary | None = None
    groups: tuple[GroupSummary, ...] = ()
    frozen: tuple[FrozenAxis, ...] = ()
    layers: tuple[LayerCut, ...] = ()
    patterns: tuple[PatternResult, ...] = ()
    pareto: tuple[ParetoPoint, ...] = ()
    graph: tuple[GraphNode, ...] = ()
    plan_sha256: str = ""
    command: str = ""
    version: str = ""
    created: str = ""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The document of report.json: only JSON values, every number finite, keys in a fixed order."""
        return {"schema": SCHEMA, **encode(self)}

    @classmethod
    def from_json(cls, doc: Any) -> Report:
        """Read a document of `to_json`; unknown keys are passed over.

        Raises:
            ConfigError: not a report of a schema we know, or a malformed one; names the place.
        """
        if not isinstance(doc, Mapping) or doc.get("schema") != SCHEMA:
            found = doc.get("schema") if isinstance(doc, Mapping) else type(doc).__name__
            raise ConfigError(f"not a report of schema {SCHEMA} (found {found!r})")
        return decode(cls, doc)

    def dumps(self) -> str:
        """JSON text: the same report gives the same bytes."""
        return json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_report(path: Path) -> Report:
    """Read report.json.

    Raises:
        ConfigError: the file is missing, isn't JSON, or isn't a report.
    """
    return documents.read(
        path, "report", "give a folder that condensec wrote, or its report.json", Report.from_json
    )
