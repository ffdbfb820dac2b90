"""Cut a model at random and hold it to the oracle, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from onnx import parser as onnx_parser

from condensec import verify
from condensec.passes.groups import Analysis, analyze
from condensec.passes.prune import Cut, prune
from condensec.plan import Plan

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Trial:
    """A cut and what the oracle says of it."""

    original: onnx.ModelProto
    analysis: Analysis
    cut: Cut
    proof: verify.Proof

    @property
    def removed(self) -> int:
        """Units removed in all groups together."""
        return sum(g.size - len(g.kept) for g in self.cut.plan.groups)

    def weight(self, name: str) -> np.ndarray:
        """A weight after the cut."""
        tensor = self.cut.model.graph.initializers[name].const_value
        assert tensor is not None
        return tensor.numpy()

    def group_of(self, weight: str, axis: int) -> Any:
        """The group that lies on one axis of a weight."""
        found = [g for g in self.analysis.groups for a in g.axes if (a.tensor, a.axis) == (weight, axis)]
        assert len(found) == 1, f"{len(found)} groups on axis {axis} of {weight}"
        return found[0]


def half(analysis: Analysis, seed: int = 0, keep: float = 0.5) -> dict[str, list[int]]:
    """A random share of the units of every group."""
    rng = np.random.default_rng(seed)
    return {g.id: sorted(rng.permutation(g.size)[: g.share(keep)].tolist()) for g in analysis.groups}


def feeds_of(model: onnx.ModelProto, analysis: Analysis, seed: int = 0, batch: int | None = None) -> Feeds:
    """Seeded inputs at the sample sizes."""
    rng = np.random.default_rng(seed)
    weights = {w.name for w in model.graph.initializer}
    feeds: Feeds = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        shape = list(analysis.world.inputs[value.name])
        if batch is not None and shape:
            shape[0] = batch
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if dtype.kind in "iu":
            feeds[value.name] = rng.integers(0, 5, shape).astype(dtype)
        elif dtype.kind == "b":
            feeds[value.name] = rng.integers(0, 2, shape).astype(dtype)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def trial(
    model: onnx.ModelProto,
    *,
    seed: int = 0,
    keep: float = 0.5,
    units: Mapping[str, Sequence[int]] | None = None,
    batches: Sequence[int | None] = (None,),
    freeze: str | None = None,
) -> Trial:
    """Cut a model and compare it with the masked original, at each batch size."""
    original = ir.from_proto(model)
    analysis = analyze(original, freeze=freeze)
    cut = prune(analysis, half(analysis, seed, keep) if units is None else units)
    plan = Plan.from_json(cut.plan.to_json())
    assert plan == cut.plan
    proof = None
    for batch in batches:
        found = verify.check(original, plan, cut.model, feeds_of(model, analysis, seed, batch))
        proof = found if proof is None or found.relative_error > proof.relative_error else proof
    assert proof is not None
    return Trial(model, analysis, cut, proof)


def tiny(
    nodes: str,
    *,
    x: Sequence[int | str] | Mapping[str, Sequence[int | str]],
    weights: Mapping[str, Sequence[int] | np.ndarray | np.generic] | None = None,
    y: str | Sequence[str] = "y",
    opset: int = 17,
    domains: Sequence[str] = (),
    dtypes: Mapping[str, int] | None = None,
    seed: int = 0,
    y_type: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model from ONNX's textual syntax.

    Args:
        nodes: lines such as ``a = Conv<pads=[1,1,1,1]>(x, w)``.
        x: shape of the input ``x``, or shapes by input name.
        weights: arrays, or shapes to fill with seeded normal numbers (scaled by fan-in).
        y: names of the outputs.
        opset: default-domain opset.
        domains: further operator domains.
        dtypes: element types of inputs that aren't float32.
        seed: of the weights.
        y_type: element type of the outputs.
    """
    imports = ", ".join(f'"{d}": {v}' for d, v in [("", opset), *((d, 1) for d in domains)])
    text = f"<ir_version: 8, opset_import: [{imports}]> g () => () {{ {nodes} }}"
    model = onnx_parser.parse_model(text)
    inputs = dict(x) if isinstance(x, Mapping) else {"x": x}
    for name, shape in inputs.items():
        dtype = (dtypes or {}).get(name, TensorProto.FLOAT)
        model.graph.input.append(helper.make_tensor_value_info(name, dtype, shape))
    for name in [y] if isinstance(y, str) else y:
        model.graph.output.append(helper.make_tensor_value_info(name, y_type, None))
    rng = np.random.default_rng(seed)
    for name, value in (weights or {}).items():
        array = np.asarray(value) if hasattr(value, "dtype") else _draw(rng, tuple(value))
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}{index}"
    return model


def _draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    fan_in = int(np.prod(shape[1:])) if len(shape) > 2 else max(shape, default=1) if len(shape) == 2 else 1
    scale = 1 / np.sqrt(fan_in) if len(shape) > 1 else 0.5
    return (rng.standard_normal(shape) * scale + (0.5 if len(shape) == 1 else 0)).astype(np.float32)
