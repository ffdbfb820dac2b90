"""Which criterion cuts best: metric and output error at half of a model's units, cut and repaired.

    criteria.py MODEL --data SAMPLES.npz [--val HELD_OUT.npz]

Every criterion orders the units on the same calibration samples. A share of each group goes at once
(`--scope inner`: groups that feed a single consumer, all of a residual network's inner channels; `all`:
every group), the cut model is judged on held-out samples, repaired in closed form, and judged again.
`random` is the control, drawn three times. With `--macs 0.5` another question: which widths, at that share of
the MACs, with the units ordered by the first criterion named: by measured curves, or by ranking scores
across groups.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import arguments, table, write_json
from threadpoolctl import threadpool_limits

from condensec.config import configure
from condensec.data import Samples
from condensec.errors import CondensecError
from condensec.fidelity import output_error
from condensec.healing import closed_form
from condensec.metrics import Metric
from condensec.passes import criteria
from condensec.passes.allocate import allocate
from condensec.passes.criteria import GroupView
from condensec.passes.evidence import Evidence
from condensec.passes.groups import Analysis
from condensec.passes.prune import prune, with_weights
from condensec.passes.ranking import GLOBAL, ISOMORPHIC, LOCAL, ranked
from condensec.passes.select import Goal, choose, unit_order
from condensec.passes.sensitivity import measure
from condensec.passes.statistics import group_sites
from condensec.runner import Session
from condensec.stages import job

DRAWS = 3
SCORED = ("fisher", "activation", "l2")  # whose scores are ranked across groups


def main() -> None:
    options = _options()
    started = time.time()
    config = configure(model=options.model, data=str(options.data), metric=options.metric, seed=options.seed)
    loaded = job.load_model(config)
    data = job.read_data(config, loaded)
    calibration, held_out = _joined(data.splits.calibration, data.splits.train), data.splits.test
    if options.val:
        given = job.read_data(configure(model=options.model, data=str(options.val), seed=1), loaded).splits
        held_out = _joined(given.calibration, given.validation, given.test)
    rng = np.random.default_rng(options.seed)
    calibration = _some(calibration, options.samples, rng)
    held_out = _some(held_out, options.held_out, rng)
    analysis = job.find_groups(config, loaded, data)
    evidence = Evidence(analysis, calibration, threads=options.threads, seed=options.seed)
    reference = Session(analysis.runnable, threads=options.threads).run_samples(held_out)
    groups = [g.id for g in analysis.groups if options.scope == "all" or len(group_sites(evidence, g)) == 1]
    names = options.criteria.split(",") if options.criteria else criteria.names()
    judge = Judge(analysis, calibration, held_out, reference, data.metric, options.threads)
    rows: list[dict[str, object]] = []
    draws = [] if options.macs else [(n, s) for n in names for s in range(DRAWS if n == "random" else 1)]
    for name, seed in draws:
        row = _tried(analysis, evidence, name, seed, groups, options.keep)
        if isinstance(row, str):
            print(f"{name}: {row}")
            continue
        seconds, units = row
        rows.append({"criterion": name, "seconds": seconds, **judge.of(units)})
    if options.macs:
        rows = list(_allocations(analysis, evidence, judge, names[0], options.macs))
    what = (
        f"{options.macs:g} of the MACs" if options.macs else f"{len(groups)} groups cut to {options.keep:g}"
    )
    dense = _dense(data.metric, reference, held_out)
    print(f"{options.model}: {what}, {len(analysis.groups)} groups in all;", end=" ")
    print(f"dense {data.metric.name} {dense:.4g}; {len(calibration)} + {len(held_out)} samples\n")
    print(table(rows))
    payload = {"rows": rows, "dense": dense, "groups": groups, "keep": options.keep, "notes": evidence.notes}
    write_json(
        options.output / f"{Path(options.model).stem}-{'widths' if options.macs else options.scope}.json",
        payload,
        started,
    )


@dataclass(frozen=True)
class Judge:
    """Judges cuts on held-out samples, as they are and repaired in closed form."""

    analysis: Analysis
    calibration: Samples
    held_out: Samples
    reference: dict[str, np.ndarray]
    metric: Metric
    threads: int

    def of(self, units: dict[str, list[int]]) -> dict[str, object]:
        """Metric and output error of one cut."""
        cut = prune(self.analysis, units)
        with threadpool_limits(1, user_api="blas"):
            repaired = closed_form.repair(
                self.analysis.runnable, cut.model, self.calibration, cut.plan, threads=self.threads
            )
        found: dict[str, object] = {}
        for label, model in (("cut", cut.model), ("repaired", with_weights(cut.model, repaired.weights))):
            outputs = Session(model, threads=self.threads).run_samples(self.held_out)
            found[f"{self.metric.name}, {label}"] = self.metric.value(outputs, self.held_out, self.reference)
            found[f"error, {label}"] = output_error(self.reference, outputs)
        return found


def _allocations(
    analysis: Analysis, evidence: Evidence, judge: Judge, name: str, share: float
) -> Iterator[dict[str, object]]:
    """Widths at one share of the MACs, by measured curves and by scores ranked across groups."""
    order = unit_order(analysis, criteria.get(name), evidence=evidence)
    goal = Goal("macs", lambda node: float(node.macs), share * analysis.macs())
    grid = {g.id: list(range(g.size, 0, -1)) for g in analysis.groups}
    curves = {"measured": measure(analysis, order, judge.calibration, threads=judge.threads, seconds=1e9)}
    for scored in SCORED:
        scores = {
            g.id: criteria.get(scored)(GroupView(analysis, g, {}, 0, evidence)) for g in analysis.groups
        }
        for how in (LOCAL, GLOBAL, ISOMORPHIC):
            curves[f"{scored}, {how}"] = ranked(analysis, scores, how)
    ways = [(label, found, choose) for label, found in curves.items()]
    for label, found, way in [*ways, ("measured, all together", curves["measured"], allocate)]:
        choice = way(analysis, found, [goal], grid)
        units = {k: sorted(order[k][:n].tolist()) for k, n in choice.counts.items()}
        yield {"units": name, "widths": label, **judge.of(units)}


def _tried(
    analysis: Analysis, evidence: Evidence, name: str, seed: int, groups: list[str], keep: float
) -> tuple[float, dict[str, list[int]]] | str:
    """(seconds, kept units) by one criterion, or why it can't be had."""
    begun = time.monotonic()
    try:
        order = unit_order(analysis, criteria.get(name), seed=seed, evidence=evidence)
    except CondensecError as error:
        return error.message
    units = {g: sorted(order[g][: max(1, int(len(order[g]) * keep))].tolist()) for g in groups}
    return time.monotonic() - begun, units


def _dense(metric: Metric, reference: dict[str, np.ndarray], samples: Samples) -> float:
    return metric.value(reference, samples, reference)


def _some(samples: Samples, count: int, rng: np.random.Generator) -> Samples:
    return samples.subset(rng.permutation(len(samples))[:count])


def _joined(*parts: Samples) -> Samples:
    inputs = {k: np.concatenate([p.inputs[k] for p in parts]) for k in parts[0].inputs}
    labels = [p.labels for p in parts if p.labels is not None]
    return Samples(inputs=inputs, labels=np.concatenate(labels) if len(labels) == len(parts) else None)


def _options() -> argparse.Namespace:
    parser = arguments(__doc__ or "", name="criteria")
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="calibration samples")
    parser.add_argument("--val", type=Path, help="held-out samples; default: a part of --data")
    parser.add_argument("--metric", help="as condensec's")
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--scope", choices=("inner", "all"), default="inner")
    parser.add_argument("--criteria", default="", help="comma-separated; default: all")
    parser.add_argument("--macs", type=float, help="compare ways to choose widths at this share of the MACs")
    parser.add_argument("--samples", type=int, default=256, help="calibration samples")
    parser.add_argument("--held-out", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
