"""Gradients with respect to masks: what each sample says of each unit, through the training worker.

The masks of a super-graph become trainable parameters of value one, a copy for each sample of a batch, so
that one backward pass gives the gradients of single samples.

Of which loss? The distance to the original's outputs has its minimum, and no gradient, where nothing is
masked. Its curvature there is the Gauss-Newton matrix J'J of the outputs' Jacobian J, and random probes of
it are had from one backward pass: with e drawn from +-1, the gradient of <e, y> is e'J, and E[(e'J)_i^2] =
(J'J)_ii (Hutchinson 1989). That is the Fisher information of outputs with Gaussian noise (Theis et al.
2018, arXiv:1801.05787). Labels aren't needed, and gradients of the cross-entropy of a trained network,
which are near zero on samples it gets right, order the units worse (`benchmarks/criteria.py`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from onnx import numpy_helper

from condensec.data.side import batch_of
from condensec.errors import HealError
from condensec.healing import losses, targets
from condensec.healing.client import Worker, follow
from condensec.healing.environment import ensure
from condensec.healing.graph import Graph
from condensec.healing.side import ports, settled
from condensec.healing.training import Training, prepare

if TYPE_CHECKING:
    import onnx

    from condensec.data import Samples

Progress = Callable[[float, str], None]
RESULT = "gradients.npz"
STALL = 600.0  # seconds without a sign of life


def mask_gradients(
    model: onnx.ModelProto,
    masks: Mapping[str, tuple[int, ...]],
    samples: Samples,
    reference: Mapping[str, np.ndarray],
    *,
    batch: int = 8,
    threads: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Per-sample gradients at masks of one.

    Args:
        model: with the masks as graph inputs.
        masks: mask input -> shape; axis 0 is 1 and stands for the sample axis.
        samples: inputs.
        reference: the model's outputs on the samples, which scale the probes.
        batch: samples a backward pass; a model with a fixed batch has its own.
        threads: of the worker.
        seed: of the probes.
        progress: told the share done.

    Returns:
        Mask name -> ``[samples, units]``.

    Raises:
        HealError: no worker can be had, no gradient passes, or an output has no sample axis.
    """
    say = progress or (lambda share, text: None)
    python = ensure(lambda line: say(0.0, line))
    batch = _batch_of(model, masks, len(samples), batch)
    training = _training(model, masks, samples, reference, batch)
    with tempfile.TemporaryDirectory(prefix="condensec-gradients-") as name:
        folder = Path(name)
        request = _request(training, samples, reference, folder, batch, threads, seed)
        path = folder / "request.json"
        path.write_text(json.dumps(request), encoding="utf-8")
        with Worker(python, [str(path)], stall=STALL) as worker:
            follow(worker, {"progress": lambda event: say(float(event["share"]), "gradients")})
        with np.load(folder / RESULT, allow_pickle=False) as stored:
            found = {mask: stored[f"w{i}"] for i, mask in enumerate(training.weights)}
    size = {mask: int(np.prod(shape)) for mask, shape in masks.items()}
    none = {mask: np.zeros((len(samples), size[mask]), np.float32) for mask in masks if mask not in found}
    return {**found, **none}


def _batch_of(model: onnx.ModelProto, masks: Mapping[str, object], count: int, wanted: int) -> int:
    fixed = batch_of(ports(model, without=masks))
    if fixed is not None:
        return fixed
    return max(1, min(wanted, count))


def _training(
    model: onnx.ModelProto,
    masks: Mapping[str, tuple[int, ...]],
    samples: Samples,
    reference: Mapping[str, np.ndarray],
    batch: int,
) -> Training:
    """The differentiable copy with the masks as its only weights."""
    kept = [value for value in model.graph.input if value.name not in masks]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    for name, shape in masks.items():
        ones = np.ones((batch, *shape[1:]), np.float32)
        model.graph.initializer.append(numpy_helper.from_array(ones, name))
    model = settled(model, samples, batch)
    feeds = {name: targets.rows(array, batch) for name, array in samples.inputs.items()}

    def choose(graph: Graph, barriers: Mapping[str, str]) -> list[losses.Term]:
        outputs = [o for o in graph.outputs if graph.is_float(o) and o in reference]
        if not outputs or any((graph.shape(o) or (0,))[0] != batch for o in outputs):
            raise HealError("an output has no sample axis: gradients of single samples can't be had")
        return [losses.Term("probe", o, 1.0) for o in outputs]

    weights = {t.name for t in model.graph.initializer} | {o for n in model.graph.node for o in n.output}
    return prepare(model, feeds, choose, None, freeze=lambda name: name in weights and name not in masks)


def _request(
    training: Training,
    samples: Samples,
    reference: Mapping[str, np.ndarray],
    folder: Path,
    batch: int,
    threads: int,
    seed: int,
) -> dict[str, object]:
    """Files for the worker."""
    files: dict[str, str] = {}

    def save(name: str, array: np.ndarray) -> None:
        files[name] = str(folder / f"{len(files)}.npy")
        np.save(files[name], array, allow_pickle=False)

    for name in training.inputs:
        array = samples.inputs[name]
        save(name, np.asarray(array, np.float32 if array.dtype.kind == "f" else array.dtype))
    for name, array in probes(training.targets, reference, len(samples), seed).items():
        save(name, array)
    graphs = {}
    for part, proto in (("model", training.model), ("behind", training.behind), ("before", training.before)):
        if proto is not None:
            graphs[part] = str(folder / f"{part}.onnx")
            Path(graphs[part]).write_bytes(proto.SerializeToString())
    targets.write_npz(
        folder / "weights.npz", {f"w{i}": array for i, array in enumerate(training.weights.values())}
    )
    return {
        "task": "gradients",
        **graphs,
        "weights": str(folder / "weights.npz"),
        "names": list(training.weights),
        "samples": files,
        "batch": batch,
        "threads": threads,
        "result": str(folder / RESULT),
    }


def probes(
    names: Mapping[str, str], reference: Mapping[str, np.ndarray], count: int, seed: int
) -> dict[str, np.ndarray]:
    """Signs for each element of each output, over the output's standard deviation and number of elements.

    Args:
        names: graph input -> output.
        reference: the outputs.
        count: samples.
        seed: of the signs.
    """
    found = {}
    for name, output in sorted(names.items()):
        value = np.asarray(reference[output], np.float32)
        if len(value) != count:
            raise HealError(f"output '{output}' has no sample axis: gradients of single samples can't be had")
        spread = float(np.sqrt(np.mean(np.square(value - value.mean(axis=0))))) or 1.0
        scale = np.float32(1.0 / (spread * np.sqrt(max(1, value[0].size))))
        signs = np.random.default_rng(seed).integers(0, 2, value.shape, np.int8)
        found[name] = (2 * signs - 1).astype(np.float32) * scale
    return found
