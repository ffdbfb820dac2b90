"""Weights made of weights become constants: which ones, and to the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from cutting import tiny

from condensec.folding import fold_weights
from condensec.runner import Session

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((6, 4, 3, 3)).astype(np.float32)
STANDARD = """m = ReduceMean<axes=[1,2,3]>(w) z = Sub(w, m) q = ReduceL2<axes=[1,2,3]>(z) n = Div(z, q)
    y = Conv(x, n)"""


def folded(body: str, **constants: Any) -> tuple[ir.Model, tuple[str, ...]]:
    model = ir.from_proto(tiny(body, x=["N", 4, 8, 8], weights=constants))
    return model, fold_weights(model)


def test_standardized_weights_are_one_constant_with_the_same_outputs() -> None:
    model, names = folded(STANDARD, w=WEIGHT)
    assert names == ("n",)
    assert [node.op_type for node in model.graph] == ["Conv"]
    centred = WEIGHT - WEIGHT.mean(axis=(1, 2, 3), keepdims=True)
    norm = np.sqrt(np.square(centred).sum(axis=(1, 2, 3), keepdims=True))
    value = model.graph.initializers["n"].const_value
    assert value is not None
    np.testing.assert_allclose(value.numpy(), centred / norm, rtol=1e-5, atol=1e-7)
    x = RNG.standard_normal((2, 4, 8, 8)).astype(np.float32)
    before = Session(tiny(STANDARD, x=["N", 4, 8, 8], weights={"w": WEIGHT})).run({"x": x})["y"]
    np.testing.assert_allclose(Session(model).run({"x": x})["y"], before, rtol=1e-4, atol=1e-6)


def test_views_and_scales_of_weights_stay() -> None:
    model, names = folded("t = Mul(w, k) y = Conv(x, t)", w=WEIGHT, k=np.float32(2))
    assert names == ()
    assert [node.op_type for node in model.graph] == ["Mul", "Conv"]


def test_what_depends_on_the_data_stays() -> None:
    model, names = folded("m = ReduceMean<axes=[1]>(x) z = Sub(x, m) y = Conv(z, w)", w=WEIGHT)
    assert names == ()
    assert len(list(model.graph)) == 3


def test_what_would_grow_the_file_stays_computed() -> None:
    column, row = np.ones((300, 1), np.float32), np.ones((1, 300), np.float32)
    _, names = folded("m = MatMul(a, b) s = ReduceMean<axes=[1,2,3]>(x) y = Add(s, m)", a=column, b=row)
    assert names == ()


def test_sizes_are_none_of_its_business() -> None:
    _, names = folded("m = ReduceSum<keepdims=0>(s) f = Cast<to=1>(m) y = Mul(x, f)", s=np.array([2, 3]))
    assert names == ()


def test_a_constant_that_is_an_output_stays_computed() -> None:
    body = "z = ReduceMean<axes=[1,2,3]>(w) y = Conv(x, w)"
    model = ir.from_proto(tiny(body, x=["N", 4, 8, 8], weights={"w": WEIGHT}, y=("y", "z")))
    assert fold_weights(model) == ()
