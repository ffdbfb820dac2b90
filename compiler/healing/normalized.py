"""Batch normalization for training, where the file has none: convolutions whose outputs are normalized.

Exporters fold batch normalization into the convolution before it, and a network without it takes small steps
only: what a cut or zeros do to the scale of one layer's output, all layers behind have to make good. So the
training copy gets it back (Ioffe & Szegedy 2015): a convolution's output is normalized over the batch, with
a scale and a shift that are trained, begun so that the copy gives what the file does. What is validated and
given back is folded again, with means and variances over samples of the training set, so the file keeps its
graph: W' = W g / s and b' = shift - m g / s, with m and s the mean and the deviation of what W gives.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto

from condensec.healing.graph import MICROSOFT, Emitter, Graph, Node

if TYPE_CHECKING:
    from condensec.data import Samples

EPSILON = 1e-5
SAMPLES = 512  # that means and variances are taken over,
_BYTES = 1 << 27  # held in memory: fewer of large ones, but a part
FEWEST = 4  # samples of a part: pixels of the same ones are alike
LEAST = 256  # values that a mean is taken over: fewer say nothing of a channel
_OPERATOR = f"{MICROSOFT}.BatchNormInternal"  # what has a gradient in onnxruntime-training


@dataclass(frozen=True)
class Site:
    """A convolution that is normalized.

    Attributes:
        weight: its weight's name.
        bias: its bias's name; in training the shift.
        scale: name of the factor, which only the training copy has.
        value: name of its output.
        channels: of it.
    """

    weight: str
    bias: str
    scale: str
    value: str
    channels: int


@dataclass(frozen=True)
class Normalized:
    """Graphs of a normalized training copy; all take weights as inputs.

    Attributes:
        model: gives the loss; its scales are further weights.
        statistics: gives mean and mean square of what every site's weight makes, in order.
        plain: gives the same of the copy that isn't normalized.
        sites: what is normalized, in order.
    """

    model: onnx.ModelProto
    statistics: onnx.ModelProto
    plain: onnx.ModelProto
    sites: tuple[Site, ...]


def normalize(graph: Graph, trained: Collection[str]) -> Normalized | None:
    """Normalize the convolutions of a training graph.

    Args:
        graph: of one part, shapes known, with its loss; not changed.
        trained: names of the weights.

    Returns:
        None where no convolution can be: each has a bias (its shift has to go somewhere), and both weights
        are its own.
    """
    sites = _sites(graph, trained)
    if not sites:
        return None
    copy = graph.copy()
    plain = _statistics(copy, {site: site.value for site in sites}, trained)
    by_value = {site.value: site for site in sites}
    nodes: list[onnx.NodeProto] = []
    before: dict[Site, str] = {}
    for proto in copy.nodes:
        site = by_value.get(proto.output[0])
        if site is None:
            nodes.append(proto)
            continue
        found, before[site] = _normalized(site, proto, copy)
        nodes += found
    copy.nodes = nodes
    weights = [*trained, *(site.scale for site in sites)]
    model = copy.model(as_inputs=weights)
    return Normalized(model, _statistics(copy, before, weights), plain, sites)


def _sites(graph: Graph, trained: Collection[str]) -> tuple[Site, ...]:
    readers = graph.consumers()
    found = []
    for proto in graph.nodes:
        node = Node(proto)
        value = node.outputs[0]
        shape = graph.shape(value) or ()
        weight, bias = node.input(1), node.input(2)
        own = all(name in trained and len(readers[name]) == 1 for name in (weight, bias))
        if node.op != "Conv" or not own or len(shape) != 4 or value in graph.outputs:
            continue
        if shape[0] >= FEWEST and shape[0] * prod(shape[2:]) >= LEAST:
            found.append(Site(weight, bias, f"heal.scale.{weight}", value, shape[1]))
    return tuple(found)


def _normalized(site: Site, proto: onnx.NodeProto, graph: Graph) -> tuple[list[onnx.NodeProto], str]:
    """The convolution without its bias, normalized, and the name of what it gives before that."""
    e = Emitter(graph, proto.name or site.value)
    before = graph.fresh(f"{site.value}.before")
    conv = onnx.NodeProto()
    conv.CopyFrom(proto)
    del conv.input[2:]
    conv.output[0] = before
    graph.shapes[before], graph.types[before] = graph.shapes[site.value], TensorProto.FLOAT
    graph.constants[site.scale] = np.ones(site.channels, np.float32)
    mean, variance = (e.const(np.full(site.channels, v)) for v in (0.0, 1.0))  # running ones: nobody's
    made = [graph.fresh(f"{site.value}.{name}") for name in ("mean", "variance", "saved_mean", "inverse")]
    for name in made:
        graph.shapes[name], graph.types[name] = (site.channels,), TensorProto.FLOAT
    e.multi(
        _OPERATOR, [before, site.scale, site.bias, mean, variance], [site.value, *made],
        epsilon=EPSILON, momentum=0.0, training_mode=1,
    )  # fmt: skip
    return [conv, *e.nodes], before


def _statistics(graph: Graph, values: dict[Site, str], weights: Collection[str]) -> onnx.ModelProto:
    """Mean and mean square over all but the channels, as outputs; what they don't need is left out."""
    part = graph.copy()
    part.outputs = []
    e = Emitter(part, "statistics")
    for site, value in values.items():
        rest = e.ints([0, 2, 3])
        square = e.op("Mul", value, value)
        for name in (value, square):
            out = e.op("ReduceMean", name, rest, keepdims=0)
            part.outputs.append(out)
            part.shapes[out], part.types[out] = (site.channels,), TensorProto.FLOAT
    part.nodes += e.nodes
    part.prune()
    read = {name for node in part.nodes for name in node.input}
    part.inputs = {name: port for name, port in part.inputs.items() if name in read}
    return part.model(as_inputs=[name for name in weights if name in part.constants])


def samples_of(train: Samples, inputs: Sequence[str], part: int, folder: Path) -> dict[str, str]:
    """Write the samples that means and variances are taken over.

    Each part is spread evenly over the training set: what is normalized over samples of one class, say, is
    none of the classes' mean, and many sets are sorted.

    Args:
        train: samples, not augmented.
        inputs: of the graphs.
        part: samples the graphs take: whole parts are written, repeated from the start where there are few.
        folder: to write to.

    Returns:
        Input -> .npy file.
    """
    size = sum(train.inputs[name][:1].nbytes for name in inputs)
    parts = max(1, min(SAMPLES, _BYTES // max(size, 1)) // part)
    rows = np.linspace(0, len(train) - 1, parts * part).astype(np.int64).reshape(part, parts).T.ravel()
    files = {name: folder / f"statistics{i}.npy" for i, name in enumerate(inputs)}
    for name, path in files.items():
        array = train.inputs[name][rows]
        np.save(path, array.astype(np.float32) if array.dtype.kind == "f" else array)
    return {name: str(path) for name, path in files.items()}
