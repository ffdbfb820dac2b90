"""Which criterion cuts best: metric and output error at half of a model's units, cut and repaired.

    criteria.py MODEL --data SAMPLES.npz [--val HELD_OUT.npz]

Every criterion orders the units on the same calibration samples. A share of each group goes at once
(`--scope inner`: groups that feed a single consumer, all of a residual network's inner channels; `all`:
every group), the cut model is judged on held-out samples, repaired in closed form, and judged again.
`random` is the control, drawn three times.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from common import arguments, table, write_json
from threadpoolctl import threadpool_limits

from condensec.config import configure
from condensec.data import Samples
from condensec.errors import CondensecError
from condensec.healing import closed_form
from condensec.metrics import Metric
from condensec.passes import criteria
from condensec.passes.evidence import Evidence
from condensec.passes.groups import Analysis
from condensec.passes.prune import prune, with_weights
from condensec.passes.select import unit_order
from condensec.passes.sensitivity import output_error
from condensec.passes.statistics import group_sites
from condensec.runner import Session
from condensec.stages import job

DRAWS = 3


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
    rows: list[dict[str, object]] = []
    for name, seed in [(n, s) for n in names for s in range(DRAWS if n == "random" else 1)]:
        row = _tried(analysis, evidence, name, seed, groups, options.keep)
        if isinstance(row, str):
            print(f"{name}: {row}")
            continue
        seconds, units = row
        cut = prune(analysis, units)
        with threadpool_limits(1, user_api="blas"):
            repaired = closed_form.repair(
                analysis.runnable, cut.model, calibration, cut.plan, threads=options.threads
            )
        found: dict[str, object] = {"criterion": name, "seconds": seconds}
        for label, model in (("cut", cut.model), ("repaired", with_weights(cut.model, repaired.weights))):
            outputs = Session(model, threads=options.threads).run_samples(held_out)
            found[f"{data.metric.name}, {label}"] = data.metric.value(outputs, held_out, reference)
            found[f"error, {label}"] = output_error(reference, outputs)
        rows.append(found)
    dense = _dense(data.metric, reference, held_out)
    print(
        f"{options.model}: {len(groups)} of {len(analysis.groups)} groups cut to {options.keep:g};", end=" "
    )
    print(f"dense {data.metric.name} {dense:.4g}; {len(calibration)} + {len(held_out)} samples\n")
    print(table(rows))
    payload = {"rows": rows, "dense": dense, "groups": groups, "keep": options.keep, "notes": evidence.notes}
    write_json(options.output / f"{Path(options.model).stem}-{options.scope}.json", payload, started)


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
    parser.add_argument("--samples", type=int, default=256, help="calibration samples")
    parser.add_argument("--held-out", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
