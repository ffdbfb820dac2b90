"""How long does the sensitivity map of a ResNet-50 take, and what does reusing prefixes save?

    analyze.py [MODEL --data SAMPLES.npz] [--samples 256] [--fraction 0.05 | --whole]

Without MODEL: a ResNet-50 v1 graph at 224x224 with seeded weights (its map says nothing, its cost is real).
Every group at the default ladder of kept shares. A fraction of the samples is measured, and the time for
all of them extrapolated: opening sessions is paid once, running them for every sample. Where other
programs take time from the same cores, the processor time over the number of threads says more. The same map
without reuse is measured at one share on half of these samples, for the speed-up and for the difference.
Losses that are known well before take fewer samples, so that the extrapolation is an upper bound; --whole
measures with all samples at hand, layers included, as `condensec analyze` does, and counts what was needed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from common import arguments, table, write_json
from resnet50 import resnet50

from condensec import io
from condensec.data import Samples, load
from condensec.passes import criteria
from condensec.passes.groups import Analysis, analyze
from condensec.passes.select import unit_order
from condensec.passes.sensitivity import RATIOS, Sensitivity, measure

Clock = tuple[float, float]  # seconds on the wall, of the processor over threads


@dataclass(frozen=True)
class Bench:
    """What is measured, and with which options."""

    options: argparse.Namespace
    analysis: Analysis
    order: Mapping[str, npt.NDArray[np.int64]]
    samples: Samples

    def timed(
        self, count: int, reuse: bool, ratios: tuple[float, ...], layers: bool = False
    ) -> tuple[Clock, Sensitivity]:
        """The map on so many samples, and the time it took."""
        threads = self.options.threads
        begun = (time.monotonic(), time.process_time())
        found = measure(
            self.analysis, self.order, self.samples, ratios=ratios, threads=threads, seconds=1e9, most=count,
            reuse=reuse, layers=layers,
        )  # fmt: skip
        spent = (time.monotonic() - begun[0], (time.process_time() - begun[1]) / threads)
        return spent, found


def main() -> None:
    options = _options()
    started = time.time()
    model = io.load(options.model) if options.model else ir.from_proto(resnet50(options.seed))
    signature = io.signature(model)
    few = options.samples if options.whole else max(8, round(options.samples * options.fraction))
    if options.data:
        samples = load(str(options.data), signature)
    else:
        rng = np.random.default_rng(options.seed)
        samples = Samples(inputs={"input": rng.normal(size=(few, 3, 224, 224)).astype(np.float32)})
    analysis = analyze(model, {n: (1, *a.shape[1:]) for n, a in samples.inputs.items()})
    bench = Bench(options, analysis, unit_order(analysis, criteria.get("l2")), samples)
    if options.whole:
        name, row = "analyze-whole.json", _whole(bench)
    else:
        name, row = "analyze.json", _extrapolated(bench, few)
    print(table([row]))
    write_json(options.output / name, {"row": row, "ratios": RATIOS}, started)


def _extrapolated(bench: Bench, few: int) -> dict[str, object]:
    """The row of a part of the samples: two sizes give what is paid once and what for each sample."""
    half, share = few // 2, (0.5,)
    pairs = {reuse: bench.timed(half, reuse, share) for reuse in (True, False)}
    short, _ = bench.timed(half, True, RATIOS)
    long, full = bench.timed(few, True, RATIOS)
    count = bench.options.samples
    estimates = []
    for a, b in zip(short, long, strict=True):
        per_sample = (b - a) / (few - half)
        estimates.append((b - few * per_sample + count * per_sample) / 60)
    with_reuse, without = pairs[True][1], pairs[False][1]
    differences = [
        abs(x - y) / max(y, 1e-6)
        for name, curve in with_reuse.curves.items()
        for x, y in zip(curve.loss, without.curves[name].loss, strict=True)
    ]
    return {
        "groups": len(bench.analysis.groups),
        "GMACs": bench.analysis.macs() / 1e9,
        "measured, s": long[0],
        "samples": few,
        f"{count} samples, min": estimates[0],
        "by processor time": estimates[1],
        "MACs reused": full.reused,
        "reuse speeds up": pairs[False][0][1] / pairs[True][0][1],
        "largest difference": max(differences),
    }


def _whole(bench: Bench) -> dict[str, object]:
    """The whole map's row."""
    spent, found = bench.timed(bench.options.samples, True, RATIOS, layers=True)
    widest = [
        d / max(x, 1e-9)
        for c in found.curves.values()
        for x, d in zip(c.loss[1:], c.deviation[1:], strict=False)
    ]
    return {
        "groups": len(bench.analysis.groups),
        "layers": len(found.layers),
        "GMACs": bench.analysis.macs() / 1e9,
        "samples": found.samples,
        "minutes": spent[0] / 60,
        "by processor time": spent[1] / 60,
        "standard error, median": float(np.median(widest)),
        "largest": max(widest),
    }


def _options() -> argparse.Namespace:
    parser = arguments(__doc__ or "", name="analyze")
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--samples", type=int, default=256, help="to extrapolate to")
    parser.add_argument("--fraction", type=float, default=0.0625, help="of them that is measured")
    parser.add_argument("--whole", action="store_true", help="measure all of it")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
