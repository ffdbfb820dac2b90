"""MiniLM-L6 on STS-B: Spearman's rank correlation with people's scores, before and after; no labels used.

    python benchmarks/minilm_stsb.py --data .cache/models [--budget 'latency<=0.67x'] [condensec options]

`--data` (or CONDENSEC_MODELS) is the folder that export_models.py wrote: minilm.onnx and stsb.npz. condensec
gets the training sentences without their scores and compares embeddings with the original's (`--metric
cosine`); the scores of the test pairs are used here, at the end, alone.

A third of its layers (attention and feed-forward count one each), trained for ten minutes:
`--patterns layers --keep 0.67 --heal minutes=10 --max-drop inf`.

Options that this script doesn't know go to condensec as they are; `--keep` takes the budget's place.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
from numpy.typing import NDArray

INPUTS = ("input_ids", "attention_mask")


def ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Ranks from 0, ties share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    middle: NDArray[np.float64] = (2 * ends - counts - 1) / 2
    return middle[inverse]


def spearman(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Rank correlation (Spearman 1904)."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def cosines(model: Path, packed: Path, split: str) -> NDArray[Any]:
    """Cosine of each pair's embeddings (they have unit length)."""
    with np.load(packed, allow_pickle=False) as data:
        embeddings = common.outputs(model, {name: data[f"{name}_{split}"] for name in INPUTS})
    product: NDArray[Any] = (embeddings[::2] * embeddings[1::2]).sum(axis=1)
    return product


def judge(found: NDArray[Any], scores: NDArray[Any], before: NDArray[Any] | None = None) -> dict[str, object]:
    """Spearman with its bootstrap interval, and the change against `before` on the same pairs."""
    pairs = np.stack([found, scores, found if before is None else before], axis=1)
    low_high = common.bootstrap(pairs, lambda p: spearman(p[:, 0], p[:, 1]))
    row: dict[str, object] = {"Spearman": spearman(found, scores), "95% interval": common.span(low_high)}
    if before is not None:
        low_high = common.bootstrap(pairs, lambda p: spearman(p[:, 0], p[:, 1]) - spearman(p[:, 2], p[:, 1]))
        row["change"] = f"{spearman(found, scores) - spearman(before, scores):+.4f}"
        row["of it, 95%"] = common.span(low_high, "+.4f")
    return row


def prepare(packed: Path, folder: Path, count: int, seed: int) -> dict[str, Path]:
    """Writes train and validation .npz of single sentences, without scores, and returns where."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    with np.load(packed, allow_pickle=False) as data:
        for name, split in (("train", "train"), ("validation", "dev")):
            total = len(data[f"input_ids_{split}"])
            chosen = np.sort(np.random.default_rng(seed).permutation(total)[:count])
            paths[name] = folder / f"{name}.npz"
            arrays = {key: data[f"{key}_{split}"][chosen] for key in INPUTS}
            np.savez(paths[name], **arrays)
    return paths


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="minilm_stsb")
    parser.add_argument("--data", type=Path, default=os.environ.get("CONDENSEC_MODELS"), metavar="DIR")
    parser.add_argument("--train", type=int, default=4000, help="sentences used (default: 4000)")
    parser.add_argument("--target", default="host")
    parser.add_argument("--budget", default="latency<=0.67x")
    parser.add_argument("--max-drop", default="2", help="points of cosine to the original's embeddings")
    options, further = parser.parse_known_args()
    if options.data is None:
        parser.error("no data: give --data DIR or set CONDENSEC_MODELS")

    model, packed = Path(options.data) / "minilm.onnx", Path(options.data) / "stsb.npz"
    data = prepare(packed, options.output / "data", options.train, options.seed)
    done = common.condensec(
        model, options.output / "minilm.condensed",
        "--target", options.target, "--data", str(data["train"]), "--val", str(data["validation"]),
        "--metric", "cosine", *([] if "--keep" in further else ["--budget", options.budget]),
        "--max-drop", options.max_drop, "--seed", str(options.seed), *further,
    )  # fmt: skip

    with np.load(packed, allow_pickle=False) as arrays:
        scores = arrays["scores_test"]
    dense = cosines(model, packed, "test")
    rows = common.result_rows(
        done, judge(dense, scores), lambda graph: judge(cosines(graph, packed, "test"), scores, dense)
    )
    title = f"MiniLM-L6, STS-B, {len(scores)} test pairs"
    common.publish(options.output / "minilm_stsb.json", title, done, rows, started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
