"""The PP-OCRv4 recogniser (SVTR-LCNet, from the package rapidocr-onnxruntime) on rendered lines.

    pip install -r examples/requirements.txt && pip install --no-deps rapidocr-onnxruntime==1.4.4
    python benchmarks/ppocr_rec.py [--budget 'latency<=0.8x'] [condensec options]

Its weights are Constant nodes; it has depthwise convolutions, squeeze-excite and attention, and 6,625
classes over 40 steps. The metric is exact match: a line counts when every character is right. Healing has
no labels (distillation alone): the texts serve the metric only.

Options that this script doesn't know go to condensec as they are.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import ppocr_metric

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import textlines
from packaged import package_file

MODEL = ("rapidocr-onnxruntime", "ch_PP-OCRv4_rec_infer.onnx")
LONGEST = 20


def render(folder: Path, sizes: dict[str, int], model: Path, seed: int) -> dict[str, Path]:
    """Writes one .npz a split (`x` [N, 3, 48, 320], `labels` [N, 20]) and returns where."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = common.session(model).get_modelmeta().custom_metadata_map["character"]
    alphabet = ppocr_metric.characters(metadata)
    paths = {}
    for split, count in sizes.items():
        x, texts = textlines.recognition(split, count, seed=seed)
        paths[split] = folder / f"{split}.npz"
        np.savez(paths[split], x=x, labels=ppocr_metric.encode(texts, alphabet, LONGEST))
    return paths


def judge(model: Path, test: Path, before: Any = None) -> tuple[dict[str, object], Any]:
    """Exact match of one graph on the test lines, and its change against `before`; hits for the next call."""
    with np.load(test, allow_pickle=False) as data:
        hits = ppocr_metric.hits(common.outputs(model, {"x": data["x"]}, 20), data["labels"])
    return common.hit_row("exact %", hits, before), hits


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="ppocr_rec")
    parser.add_argument(
        "--samples", type=int, nargs=3, metavar=("TRAIN", "VAL", "TEST"), default=(1500, 500, 1500)
    )
    parser.add_argument("--target", default="host")
    parser.add_argument("--budget", default="latency<=0.8x")
    parser.add_argument("--max-drop", default="1")
    options, further = parser.parse_known_args()

    model = package_file(*MODEL)
    sizes = dict(zip(textlines.SPLITS, options.samples, strict=True))
    data = render(options.output / "data", sizes, model, options.seed)
    done = common.condensec(
        model, options.output / "rec.condensed",
        "--target", options.target, "--data", str(data["train"]), "--val", str(data["validation"]),
        "--metric", "ppocr_metric:exact_match", "--budget", options.budget, "--max-drop", options.max_drop,
        "--seed", str(options.seed), *further, path=[Path(__file__).parent],
    )  # fmt: skip

    dense, hits = judge(model, data["test"])
    rows = common.result_rows(done, dense, lambda graph: judge(graph, data["test"], hits)[0])
    title = f"PP-OCRv4 recogniser, {len(hits)} test lines"
    common.publish(options.output / "ppocr_rec.json", title, done, rows, started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
