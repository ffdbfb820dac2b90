"""Four models made faster on this machine: what they lose, beside what each part of condensec earns.

    python benchmarks/quality/faster.py orientation [--faster 2] [--minutes 5] [--runs condensec ...]
    python benchmarks/quality/faster.py recogniser --faster 1.5
    python benchmarks/quality/faster.py minilm --models .cache/models --faster 1.5
    python benchmarks/quality/faster.py efficientnet --models .cache/models --images DIR --faster 1.3

--faster 1.5 asks for 1/1.5 of the measured latency. The runs called uniform keep `--uniform SHARE` of every
group instead, so that one sees what cut, closed form and training each leave.

- orientation: text-line orientation classifier of rapidocr-onnxruntime, rendered lines, labelled (`demo.py`);
- recogniser: PP-OCRv4, rendered lines, exact match, healed without labels (`ppocr_rec.py`);
- minilm: MiniLM-L6, STS-B, Spearman, without labels (`minilm_stsb.py`);
- efficientnet: EfficientNet-Lite0, agreement with the original on photographs (`efficientnet_lite0.py`).

Test samples are never given to condensec. Options that this script doesn't know go to condensec as they are,
to all runs.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import common
import controls
import numpy as np


@dataclass(frozen=True)
class Subject:
    """A model with its data.

    Attributes:
        model: the original.
        data: options for condensec.
        judge: figures of a graph on test samples.
        path: folders for PYTHONPATH, for `--metric module:callable`.
    """

    model: Path
    data: Sequence[str]
    judge: controls.Judge
    path: Sequence[Path] = ()


def _files(data: Mapping[str, Path]) -> list[str]:
    return ["--data", str(data["train"]), "--val", str(data["validation"])]


def _compared(hits: Any, name: str, original: Path) -> controls.Judge:
    """A judge by hits on the test samples, with the change against the original's."""
    before = hits(original)

    def judge(graph: Path) -> Mapping[str, object]:
        return common.hit_row(name, hits(graph), None if graph == original else before)

    return judge


def orientation(options: Any, folder: Path) -> Subject:
    """Text-line orientation, labelled; the test lines have other fonts and words."""
    import demo
    import textlines
    from packaged import package_file

    model = package_file(*demo.MODEL)
    sizes = dict(zip(textlines.SPLITS, options.samples or (4000, 1000, 2000), strict=True))
    data = demo.render(folder, sizes, options.seed)
    return Subject(model, _files(data), _compared(lambda g: demo.correct(g, data["test"]), "top-1 %", model))


def recogniser(options: Any, folder: Path) -> Subject:
    """Text recognition: exact match."""
    import ppocr_rec
    import textlines
    from packaged import package_file

    model = package_file(*ppocr_rec.MODEL)
    sizes = dict(zip(textlines.SPLITS, options.samples or (1500, 500, 1500), strict=True))
    data = ppocr_rec.render(folder, sizes, model, options.seed)
    judge = _compared(lambda g: ppocr_rec.judge(g, data["test"])[1], "exact %", model)
    metric = ["--metric", "ppocr_metric:exact_match"]
    return Subject(model, [*_files(data), *metric], judge, [Path(ppocr_rec.__file__).parent])


def minilm(options: Any, folder: Path) -> Subject:
    """Sentence embeddings."""
    import minilm_stsb

    model, packed = options.models / "minilm.onnx", options.models / "stsb.npz"
    count = (options.samples or (4000,))[0]
    data = minilm_stsb.prepare(packed, folder, count, options.seed)
    with np.load(packed, allow_pickle=False) as arrays:
        scores = arrays["scores_test"]
    before = minilm_stsb.cosines(model, packed, "test")

    def judge(graph: Path) -> Mapping[str, object]:
        found = before if graph == model else minilm_stsb.cosines(graph, packed, "test")
        return minilm_stsb.judge(found, scores, None if graph == model else before)

    return Subject(model, [*_files(data), "--metric", "cosine"], judge)


def efficientnet(options: Any, folder: Path) -> Subject:
    """Photographs without labels."""
    import efficientnet_lite0

    model = options.models / "efficientnet_lite0.onnx"
    sizes = dict(zip(efficientnet_lite0.SPLITS, options.samples or (800, 300, 1000), strict=True))
    data = efficientnet_lite0.prepare(options.images, folder, sizes, options.seed)
    dense = efficientnet_lite0.choices(model, data["test"])

    def judge(graph: Path) -> Mapping[str, object]:
        return common.hit_row("agreement %", efficientnet_lite0.choices(graph, data["test"]) == dense)

    return Subject(model, [*_files(data), "--metric", "agreement"], judge)


SUBJECTS = {
    "orientation": (orientation, 2.0),
    "recogniser": (recogniser, 1.5),
    "minilm": (minilm, 1.5),
    "efficientnet": (efficientnet, 1.3),
}


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="quality")
    parser.add_argument("subject", choices=list(SUBJECTS))
    parser.add_argument("--models", type=Path, default=os.environ.get("CONDENSEC_MODELS"), metavar="DIR")
    parser.add_argument("--images", type=Path, default=os.environ.get("CONDENSEC_IMAGES"), metavar="DIR")
    parser.add_argument("--samples", type=int, nargs="+", help="training, validation, test")
    parser.add_argument("--faster", type=float, help="default: the goal of the model")
    parser.add_argument("--uniform", type=float, default=0.75, metavar="SHARE")
    parser.add_argument("--minutes", type=float, default=5, help="of training in each run (default: 5)")
    parser.add_argument("--step", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=1, help="so many, from --seed on, and their medians")
    parser.add_argument("--runs", nargs="+", choices=controls.NAMES, default=list(controls.NAMES))
    options, further = parser.parse_known_args()
    if options.subject in ("minilm", "efficientnet") and options.models is None:
        parser.error("no model: give --models DIR or set CONDENSEC_MODELS (see export_models.py)")
    if options.subject == "efficientnet" and options.images is None:
        parser.error("no pictures: give --images DIR or set CONDENSEC_IMAGES")

    build, usual = SUBJECTS[options.subject]
    faster = options.faster or usual
    output = options.output / options.subject
    subject = build(options, output / "data")
    task = controls.Task(
        subject.model, subject.data, f"latency<={1 / faster:.4f}x", options.minutes, subject.judge,
        output, options.seed, options.step, subject.path,
    )  # fmt: skip
    rows = controls.seeded(
        task, options.seeds, lambda one: controls.compare(one, options.runs, options.uniform, further)
    )
    print(f"\n{options.subject}, {faster:g}x faster\n\n{common.table(rows)}")
    common.write_json(options.output / f"{options.subject}.json", {"rows": rows}, started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
