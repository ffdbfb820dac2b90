"""What the tests do to the models of `models.py`: feed, run, disguise, save."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IMAGE = (3, 16, 16)
VOCABULARY = 50


def balanced(model: onnx.ModelProto) -> onnx.ModelProto:
    """Shifts `fc.bias` so that the mean of `logits` over random inputs is zero.

    Without it an untrained network gives every input the same class, and no test on labels tests anything.
    Rounded, so that the weights don't depend on the last bits of a machine's arithmetic.
    """
    mean = run(model, random_feeds(model, 64, seed=12345)).mean(axis=0).round(2)
    bias = next(w for w in model.graph.initializer if w.name == "fc.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) - mean, bias.name))
    return model


def as_constant_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with every initializer as a Constant node, as Paddle exports it."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    constants = [
        helper.make_node("Constant", [], [w.name], name=f"const.{w.name}", value=w)
        for w in out.graph.initializer
    ]
    nodes = [*constants, *model.graph.node]
    del out.graph.initializer[:], out.graph.node[:]
    out.graph.node.extend(nodes)
    onnx.checker.check_model(out, full_check=True)
    return out


def with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """The same model with its batch fixed to `batch`, in its inputs and outputs."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    for value in [*out.graph.input, *out.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.checker.check_model(out, full_check=True)
    return out


def random_feeds(
    model: onnx.ModelProto, batch: int = 2, *, seed: int = 0, sequence: int = 6
) -> dict[str, np.ndarray]:
    """Seeded inputs.

    Images are smooth blobs and noise (noise alone is gone after a global pool), other floats are normal,
    token ids lie below `VOCABULARY`, and a row of the mask has 1 to `sequence` ones.
    """
    rng = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        shape = [d.dim_value or sequence for d in value.type.tensor_type.shape.dim]
        shape[0] = batch
        if value.name == "attention_mask":
            lengths = rng.integers(1, sequence + 1, batch)
            feeds[value.name] = (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)
        elif value.type.tensor_type.elem_type == TensorProto.INT64:
            feeds[value.name] = rng.integers(0, VOCABULARY, shape)
        elif len(shape) == 4:
            blobs = rng.standard_normal((*shape[:2], 4, 4)).repeat(shape[2] // 4, 2).repeat(shape[3] // 4, 3)
            feeds[value.name] = (blobs + 0.3 * rng.standard_normal(shape)).astype(np.float32)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """`logits` of the model in onnxruntime, one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], feeds)[0])


def save(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    """Writes the model into `folder` and returns its path."""
    path = folder / name
    onnx.save(model, path)
    return path


def save_samples(
    model: onnx.ModelProto, path: Path, count: int = 64, *, seed: int = 0, labels: bool = True
) -> Path:
    """Writes `count` samples as .npz; `labels` are the model's own answers, so its top-1 on them is 1."""
    arrays = random_feeds(model, count, seed=seed)
    if labels:
        arrays["labels"] = run(model, random_feeds(model, count, seed=seed)).argmax(axis=1)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path
