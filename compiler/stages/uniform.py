"""A plan without a search: the same share of every group's units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from condensec import io
from condensec.config import Config
from condensec.passes import criteria
from condensec.passes.groups import analyze
from condensec.passes.prune import prune
from condensec.passes.select import unit_order
from condensec.plan import Plan
from condensec.stages import job


def planned(config: Config, keep: float, shapes: Mapping[str, tuple[int, ...]] | None) -> Plan:
    """See `condensec.api.plan`."""
    path = Path(config.model)
    evidence = None
    if "data" in criteria.needs(config.criterion):
        loaded = job.load_at(path)
        data = job.read_data(config, loaded)
        analysis = job.find_groups(config, loaded, data)
        evidence = job.gathered(analysis, data.splits.calibration, config)
    else:
        analysis = analyze(io.load(path), shapes, freeze=config.freeze)
    order = unit_order(analysis, criteria.get(config.criterion), seed=config.seed, evidence=evidence)
    step = config.align or 1
    units: dict[str, Sequence[int]] = {}
    for group in analysis.groups:
        count = int(group.size * keep + 1e-9) // step * step or step
        count = min(group.size, max(group.least, count))
        units[group.id] = sorted(int(i) for i in order[group.id][:count])
    return prune(analysis, units, sha256=io.sha256(path)).plan
