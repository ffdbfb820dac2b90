"""What the worker is asked to do, as files beside a request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from condensec.healing import budget, gradient_graph, normalized, targets
from condensec.healing.options import HealOptions
from condensec.healing.training import Training

if TYPE_CHECKING:
    from condensec.data import Samples

_VERSION = 4  # of the files in the state folder


@dataclass(frozen=True)
class Shorter:
    """Training graphs for samples of less than the full length (see `condensec.healing.lengths`).

    Attributes:
        graphs: by length, ascending, without the full one.
        kinds: by split, which of the graphs a sample goes to.
    """

    graphs: Sequence[Training] = ()
    kinds: Mapping[str, np.ndarray] = field(default_factory=dict)

    def write(self, training: Training, state: Path) -> dict[str, Any]:
        """Their part of the request, with files beside it; nothing where there are none."""
        if not self.graphs:
            return {}
        paths = [state / f"shorter-{i}.onnx" for i in range(len(self.graphs))]
        for path, graph in zip(paths, self.graphs, strict=True):
            path.write_bytes(graph.model.SerializeToString())
        files = {split: str(state / f"kinds-{split}.npy") for split in self.kinds}
        for split, kinds in self.kinds.items():
            np.save(files[split], kinds)
        shapes = [graph.shapes() for graph in (*self.graphs, training)]
        return {"shorter": [str(path) for path in paths], "shapes": shapes, "kinds": files}


def request_of(
    training: Training,
    files: dict[str, dict[str, str]],
    share: budget.Share,
    options: HealOptions,
    state: Path,
    sizes: tuple[int, int],
    shorter: Shorter,
) -> dict[str, Any]:
    """What the worker is asked to do; its weights and graph are written beside it.

    Args:
        training: the training graph.
        files: samples and targets.
        share: of the time budget.
        options: settings.
        state: folder to write to.
        sizes: samples of one part, which the graph takes, and of a whole batch.
        shorter: graphs for samples that are padded.
    """
    (state / "forward.onnx").write_bytes(training.model.SerializeToString())
    paths = {}
    for name, part in (("behind", training.behind), ("before", training.before)):
        if part is not None:
            paths[name] = str(state / f"{name}.onnx")
            Path(paths[name]).write_bytes(part.SerializeToString())
    scales = _scales(training)
    initial = {f"w{i}": value for i, value in enumerate([*training.weights.values(), *scales.values()])}
    names = [*training.weights, *scales]  # what is given back first: the parent reads it by its place
    targets.write_npz(state / "initial.npz", initial)
    optimizer = {
        "kind": options.optimizer,
        "lr": options.lr,
        "weight_decay": options.weight_decay,
        "warmup": options.warmup,
    }
    return {
        "model": str(state / "forward.onnx"),
        **paths,
        "weights": str(state / "initial.npz"),
        "names": names,
        **files,
        "part": sizes[0],
        "batch": sizes[1],
        "samples": share.train,
        "average": options.average,
        "epochs": options.epochs,
        "seconds": share.seconds,
        "threads": options.jobs,
        "seed": options.seed,
        "trials": gradient_graph.trial.write(state),
        "zeros": [name for name in names if name in options.zeros],
        **_thin(options, names, state),
        **shorter.write(training, state),
        **_norms(training, state),
        "optimizer": optimizer,
        "state": str(state),
    }


def _scales(training: Training) -> dict[str, np.ndarray]:
    """What is trained beside the weights where convolutions are normalized."""
    sites = training.normalized.sites if training.normalized is not None else ()
    return {site.scale: np.ones(site.channels, np.float32) for site in sites}


def _norms(training: Training, state: Path) -> dict[str, Any]:
    """Graphs with batch normalization; nothing where there is none."""
    given = training.normalized
    if given is None:
        return {}
    graphs = {"normalized": given.model, "statistics": given.statistics, "plain": given.plain}
    files = {name: str(state / f"{name}.onnx") for name in graphs}
    for name, graph in graphs.items():
        Path(files[name]).write_bytes(graph.SerializeToString())
    sites = [[site.weight, site.bias, site.scale] for site in given.sites]
    model = files.pop("normalized")  # the engine's; the others are for means and variances
    return {"normalized": model, "norms": {"files": files, "sites": sites, "epsilon": normalized.EPSILON}}


def _thin(options: HealOptions, names: Sequence[str], state: Path) -> dict[str, Any]:
    """Zeros that come while training, with a file of prices; nothing where none are asked for."""
    if options.thin is None:
        return {}
    prices = {f"w{i}": options.thin.prices[n] for i, n in enumerate(names) if n in options.thin.prices}
    targets.write_npz(state / "prices.npz", prices)
    counts = {name: int(options.thin.counts[name]) for name in names if name in options.thin.counts}
    return {"thin": counts, "prices": str(state / "prices.npz")}


def fingerprint(
    request: Mapping[str, Any], training: Training, options: HealOptions, samples: tuple[Samples, Samples]
) -> str:
    """Equal for equal jobs: a checkpoint of another job is not taken up."""
    digest = hashlib.sha256()
    plain = {k: v for k, v in request.items() if k not in ("threads", "state")}
    how = [options.views, getattr(options.augment, "__qualname__", options.augment)]
    how.append(options.thin.digest() if options.thin is not None else "")
    digest.update(json.dumps([_VERSION, plain, how], sort_keys=True, default=str).encode())
    digest.update(training.model.SerializeToString(deterministic=True))
    for value in training.weights.values():
        digest.update(np.ascontiguousarray(value).tobytes())
    for part in samples:
        digest.update(targets.summary(part))
    return digest.hexdigest()
