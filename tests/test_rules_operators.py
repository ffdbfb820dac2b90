"""Every operator family: cut at random, prove; and break the cut, which the proof has to see."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import operator_cases_experts  # noqa: F401  (each adds cases)
import operator_cases_more  # noqa: F401
import operator_cases_versions  # noqa: F401
import pytest
from cutting import Trial, feeds_of, trial
from operator_cases import CASES

from condensec import verify
from condensec.passes.prune import set_weight

# Reductions of quantized numbers flip last bits: one step of the output's scale.
ROUGH = {"weights behind DequantizeLinear": 0.03}


@pytest.fixture(scope="module")
def trials() -> dict[str, Trial]:
    return {}


def cut(trials: dict[str, Trial], name: str) -> Trial:
    if name not in trials:
        trials[name] = trial(CASES[name](), seed=3, keep=0.7)
    return trials[name]


@pytest.mark.parametrize("name", CASES)
def test_a_cut_on_both_sides_of_the_operator_is_right(name: str, trials: dict[str, Trial]) -> None:
    found = cut(trials, name)
    assert found.removed > 0, [f.reason for f in found.analysis.frozen]
    assert found.proof.relative_error <= ROUGH.get(name, 2e-6), found.proof


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_index_in_a_slice_is_caught(name: str, trials: dict[str, Trial]) -> None:
    """Every sliced weight in turn has its slices rolled by one; most of them must be seen in the outputs."""
    found = cut(trials, name)
    model = found.cut.model
    feeds = feeds_of(found.original, found.analysis)
    caught = []
    for weight, axes in found.cut.plan.slices.items():
        value = model.graph.initializers[weight]
        tensor = value.const_value
        assert tensor is not None
        array = tensor.numpy()
        axis = next((a for a in axes if array.shape[a] > 1), None)
        if axis is None or array.size == 0 or not (array != np.roll(array, 1, axis)).any():
            continue
        set_weight(value, np.roll(array, 1, axis), tensor.dtype)
        try:
            proof = verify.check(ir.from_proto(found.original), found.cut.plan, model, feeds)
            caught.append(not proof.passed)
        finally:
            set_weight(value, array, tensor.dtype)
    assert caught
    assert np.mean(caught) >= 0.5, f"{sum(caught)} of {len(caught)}"
