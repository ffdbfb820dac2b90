"""EfficientNet-Lite0 (ImageNet) with unlabelled pictures: agreement of the first choice with the original's.

    python benchmarks/efficientnet_lite0.py --data .cache/models --images DIR [condensec options]

`--data` (or CONDENSEC_MODELS) is the folder that export_models.py wrote; `--images` (or CONDENSEC_IMAGES) is
any folder of photographs, searched through. The published figures used those of the Debian packages
mate-backgrounds, ukui-wallpapers and lomiri-wallpapers-16.04: free, and large enough for many crops each.

A sample is a random square crop (a quarter to the whole of the shorter side), scaled to 224, half of them
mirrored, (x - 127) / 128. Training, validation and test crops come from different pictures.

Options that this script doesn't know go to condensec as they are.
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
from PIL import Image

SPLITS = ("train", "validation", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SIDE = 224


def pictures(folder: Path, seed: int) -> dict[str, list[Path]]:
    """The photographs of a folder by split: 60, 15 and 25 of a hundred.

    Raises:
        SystemExit: fewer than eight pictures.
    """
    found = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and not p.is_symlink()
    )
    if len(found) < 8:
        raise SystemExit(f"{folder}: {len(found)} pictures ({', '.join(SUFFIXES)}); at least 8 are needed")
    order = [found[i] for i in np.random.default_rng(seed).permutation(len(found))]
    first, second = round(0.6 * len(order)), round(0.75 * len(order))
    return dict(zip(SPLITS, (order[:first], order[first:second], order[second:]), strict=True))


def crops(files: list[Path], count: int, seed: int) -> NDArray[np.float32]:
    """Random crops [count, 3, 224, 224], equally many of each picture."""
    out = np.zeros((count, 3, SIDE, SIDE), np.float32)
    for i, file in enumerate(files):
        rng = np.random.default_rng([seed, i])
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
        picture.thumbnail((1600, 1600))
        for row in range(i, count, len(files)):
            side = int(min(picture.size) * rng.uniform(0.25, 1))
            x, y = (int(rng.integers(0, total - side + 1)) for total in picture.size)
            crop = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (x, y, x + side, y + side))
            pixels = np.asarray(crop, np.float32)[:, :: rng.choice([-1, 1])]
            out[row] = ((pixels - 127) / 128).transpose(2, 0, 1)
    return out[np.random.default_rng(seed).permutation(count)]


def prepare(source: Path, folder: Path, sizes: dict[str, int], seed: int) -> dict[str, Path]:
    """Writes one .npz a split (array `image`) and returns where."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for split, files in pictures(source, seed).items():
        paths[split] = folder / f"{split}.npz"
        np.savez(paths[split], image=crops(files, sizes[split], seed))
    return paths


def choices(model: Path, test: Path) -> NDArray[Any]:
    """First choice for every crop."""
    with np.load(test, allow_pickle=False) as data:
        chosen: NDArray[Any] = common.outputs(model, {"image": data["image"]}, 20).argmax(axis=1)
    return chosen


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="efficientnet_lite0")
    parser.add_argument("--data", type=Path, default=os.environ.get("CONDENSEC_MODELS"), metavar="DIR")
    parser.add_argument("--images", type=Path, default=os.environ.get("CONDENSEC_IMAGES"), metavar="DIR")
    parser.add_argument(
        "--samples", type=int, nargs=3, metavar=("TRAIN", "VAL", "TEST"), default=(800, 300, 1000)
    )
    parser.add_argument("--target", default="host")
    parser.add_argument("--budget", default="latency<=0.77x")
    parser.add_argument("--max-drop", default="5", help="points of agreement with the original")
    options, further = parser.parse_known_args()
    if options.data is None or options.images is None:
        parser.error(
            "no data: give --data DIR and --images DIR, or set CONDENSEC_MODELS and CONDENSEC_IMAGES"
        )

    model = Path(options.data) / "efficientnet_lite0.onnx"
    sizes = dict(zip(SPLITS, options.samples, strict=True))
    data = prepare(Path(options.images), options.output / "data", sizes, options.seed)
    done = common.condensec(
        model, options.output / "efficientnet_lite0.condensed",
        "--target", options.target, "--data", str(data["train"]), "--val", str(data["validation"]),
        "--metric", "agreement", "--budget", options.budget, "--max-drop", options.max_drop,
        "--seed", str(options.seed), *further,
    )  # fmt: skip

    dense = choices(model, data["test"])
    rows = common.result_rows(
        done,
        {"classes seen": len(set(dense.tolist()))},
        lambda graph: common.hit_row("agreement %", choices(graph, data["test"]) == dense),
    )
    title = f"EfficientNet-Lite0, {len(dense)} test crops"
    common.publish(options.output / "efficientnet_lite0.json", title, done, rows, started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
