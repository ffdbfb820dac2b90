"""First states of recurrent layers: zeros are left out, anything else stays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from operator_cases import ZEROS, recurrent

from condensec.passes.states import leave_zeros_out
from condensec.runner import Session

ONES = ZEROS.replace("ConstantOfShape(t0)", "ConstantOfShape<value = float[1] {1.0}>(t0)")


@pytest.mark.parametrize(("kind", "gates", "states"), [("LSTM", 4, 2), ("GRU", 3, 1), ("RNN", 1, 1)])
def test_zeros_of_any_shape_are_left_out(kind: str, gates: int, states: int) -> None:
    proto = recurrent(kind, gates, 2, state=ZEROS)
    model = ir.from_proto(proto)
    assert leave_zeros_out(model) == states
    assert not {node.op_type for node in model.graph} & {"Shape", "ConstantOfShape", "Identity"}
    x = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32)
    want, have = (Session(one).run({"x": x})["y"] for one in (proto, model))
    np.testing.assert_array_equal(have, want)


def test_other_states_stay() -> None:
    model = ir.from_proto(recurrent("LSTM", 4, state=ONES))
    assert leave_zeros_out(model) == 0
    assert any(node.op_type == "ConstantOfShape" for node in model.graph)
