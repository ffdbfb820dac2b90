"""The sensitivity map of a job: measured, or read from the cache where it was measured before."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.data import Samples
from condensec.passes.sensitivity import MOST, RATIOS, Curve, LayerLoss, Metric, Sensitivity, measure
from condensec.report.model import LossDetail
from condensec.runner import runtime_version
from condensec.stages.job import Job
from condensec.stages.steps import Steps

Order = Mapping[str, npt.NDArray[np.int64]]
SCHEMA = 2
FOLDER_VARIABLE = "CONDENSEC_CACHE_DIR"
MOST_FILES = 256  # of the cache; the oldest go
QUICK_SECONDS = 20.0  # about what the map may take on the way to a cut
WHOLE_SECONDS = 3600.0  # and where the map is what was asked for; a cautious figure
_Z95 = 1.96


def cache_folder() -> Path:
    """Where maps are kept: ``$CONDENSEC_CACHE_DIR``, else the user's cache folder."""
    import platformdirs

    return Path(os.environ.get(FOLDER_VARIABLE) or platformdirs.user_cache_dir("condensec")) / "sensitivity"


def sensitivity(
    job: Job,
    order: Order,
    steps: Steps,
    *,
    seconds: float = QUICK_SECONDS,
    layers: bool = False,
    groups: bool = True,
) -> Sensitivity:
    """Curves of all groups on calibration samples.

    A map that was measured before with the same model, samples, order, settings and versions is read from
    the cache. A file there that can't be read is measured again; one that can't be written doesn't matter.

    Args:
        job: the job.
        order: units of each group, most important first.
        steps: told how far it is.
        seconds: about how long it may take.
        layers: measure the removal of whole layers, too.
        groups: measure the groups.
    """
    samples = job.data.splits.calibration.first(MOST)
    metric = _metric(job, samples)
    path = cache_folder() / f"{_key(job, order, samples, [seconds, layers, groups])}.json"
    found = _read(path) if _can_be_kept(job) else None
    if found is None:
        found = measure(
            job.analysis,
            order,
            samples,
            threads=job.config.jobs,
            seconds=seconds,
            layers=layers,
            groups=groups,
            metric=metric,
            progress=lambda subject, share: steps.progress("sensitivity", share, subject),
        )
        if _can_be_kept(job):
            _write(path, found)
    return found


def _metric(job: Job, samples: Samples) -> Metric | None:
    """The job's metric where it looks at labels; fidelity to the original is the output error already."""
    metric = job.data.metric
    if samples.labels is None or metric.needs_reference:
        return None
    return lambda outputs, some: metric.value(outputs, some)


def _can_be_kept(job: Job) -> bool:
    """A metric of the user's own may change without its name changing."""
    return job.data.metric.whole is None


def _key(job: Job, order: Order, samples: Samples, asked: Sequence[float]) -> str:
    from condensec import __version__

    settings = [
        SCHEMA,
        __version__,
        _sources(),
        runtime_version(),
        job.sha256,
        job.config.freeze,
        job.config.jobs,  # rounding differs with the number of threads
        job.data.metric.name,
        list(RATIOS),
        list(asked),
        sorted((name, list(sizes)) for name, sizes in job.analysis.world.inputs.items()),
    ]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, units in order.items():
        digest.update(name.encode() + np.asarray(units, np.int64).tobytes())
    arrays = {**samples.inputs, **({} if samples.labels is None else {"labels": samples.labels})}
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


@functools.cache
def _sources() -> str:
    """Hash of the code that measures: a map of other code isn't this one's, whatever the version says."""
    digest = hashlib.sha256()
    for name in ("groups", "sensitivity", "segments", "sites", "supergraph"):
        module = importlib.import_module(f"condensec.passes.{name}")
        try:
            digest.update(Path(str(module.__file__)).read_bytes())
        except OSError:
            continue  # frozen, or in an archive: the version has to do
    return digest.hexdigest()


def _write(path: Path, found: Sensitivity) -> None:
    """Under a name of its own first: several runs may write the same map at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(to_document(found), file)
            os.replace(draft, path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
        for old in sorted(path.parent.glob("*.json"), key=lambda p: p.stat().st_mtime)[:-MOST_FILES]:
            old.unlink(missing_ok=True)
    except OSError:
        return  # a cache that can't be written only costs time


def _read(path: Path) -> Sensitivity | None:
    try:
        return from_document(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def to_document(found: Sensitivity) -> dict[str, Any]:
    """JSON of a map; what isn't known is null."""
    return {
        "schema": SCHEMA,
        "samples": found.samples,
        "seconds": found.seconds,
        "reused": found.reused,
        "curves": {name: {k: _plain(v) for k, v in vars(c).items()} for name, c in found.curves.items()},
        "layers": {name: {k: _plain(v) for k, v in vars(x).items()} for name, x in found.layers.items()},
    }


def from_document(doc: Mapping[str, Any]) -> Sensitivity:
    """The map of a document.

    Raises:
        ValueError, KeyError, TypeError: it isn't one.
    """
    if doc["schema"] != SCHEMA:
        raise ValueError("a map of another schema")
    curves = {
        name: Curve(
            tuple(int(n) for n in c["kept"]),
            *(tuple(_number(v) for v in c[k]) for k in ("loss", "deviation", "metric")),
        )
        for name, c in doc["curves"].items()
    }
    layers = {
        name: LayerLoss(_number(x["loss"]), _number(x["deviation"]), x["metric"], _number(x["similarity"]))
        for name, x in doc["layers"].items()
    }
    return Sensitivity(curves, int(doc["samples"]), float(doc["seconds"]), layers, float(doc["reused"]))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def group_details(found: Sensitivity) -> dict[str, dict[str, LossDetail]]:
    """For the report: group -> kept share -> what was measured there."""
    return {
        name: {
            f"{curve.kept[i] / curve.kept[0]:.4g}": _detail(
                curve.loss[i], curve.deviation[i], curve.metric[i] if curve.metric else None
            )
            for i in range(1, len(curve.deviation))
        }
        for name, curve in found.curves.items()
    }


def map_fields(job: Job, found: Sensitivity) -> dict[str, Any]:
    """The report's fields about the map."""
    return {
        "sensitivity": found.to_json(),
        "sensitivity_unit": "output error, relative to the outputs' variance",
        "sensitivity_detail": group_details(found),
        "layer_sensitivity": layer_details(job, found),
        "sensitivity_samples": found.samples,
    }


def layer_details(job: Job, found: Sensitivity) -> dict[str, LossDetail]:
    """For the report: layer, by its id and the node that adds it to the stream -> what its removal costs."""
    names = {layer.id: f"{layer.id} {layer.nodes[-1]}" for layer in job.analysis.layers}
    return {
        names[name]: _detail(x.loss, x.deviation, x.metric, x.similarity) for name, x in found.layers.items()
    }


def _detail(loss: float, deviation: float, metric: float | None, similarity: float = math.nan) -> LossDetail:
    known = math.isfinite(deviation)
    interval = (max(0.0, loss - _Z95 * deviation), loss + _Z95 * deviation) if known else None
    return LossDetail(loss, interval, metric, similarity if math.isfinite(similarity) else None)
