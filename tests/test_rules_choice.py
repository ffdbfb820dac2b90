"""A router chooses among experts: as many as it wants stay, and what can't be followed is frozen."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import operator_cases_experts  # noqa: F401  (adds its cases)
import pytest
from cutting import tiny, trial
from operator_cases import CASES, ints

from condensec.errors import PreconditionError
from condensec.passes.groups import analyze
from condensec.passes.prune import prune

STACKED = ["experts gathered by a router", "gates scattered by a router", "gates from one-hot positions"]


@pytest.mark.parametrize("name", STACKED)
def test_as_many_experts_stay_as_the_router_chooses(name: str) -> None:
    found = trial(CASES[name](), keep=0.1)
    experts = found.group_of("wr", 1)
    assert (experts.kind, experts.size, experts.least, experts.exact) == ("expert", 6, 2, False)
    assert found.weight("wr").shape[1] == 2
    assert found.proof.relative_error < 2e-6
    with pytest.raises(PreconditionError, match="would keep 1 of 6 units; 2 have to stay"):
        prune(found.analysis, {experts.id: [3]})


def test_the_weights_of_an_expert_go_with_its_column_in_the_router() -> None:
    model = CASES["experts gathered by a router"]()
    identifier = trial(model).group_of("wr", 1).id
    found = trial(model, units={identifier: [1, 2, 5]})
    for name, axis in (("wr", 1), ("e1", 0), ("e2", 0)):
        assert found.cut.plan.slices[name] == {axis: (1, 2, 5)}
    (restriction,) = found.cut.plan.restrictions
    assert (restriction.kept, restriction.size) == ((1, 2, 5), 6)
    assert found.proof.relative_error < 2e-6


def test_a_router_that_chooses_all_leaves_nothing_to_cut() -> None:
    nodes = "r = MatMul(x, wr) v, i = TopK(r, k) g = Gather<axis=0>(e, i) y = Mul(g, v)"
    for chosen, groups in ((5, 1), (6, 0)):
        model = tiny(
            nodes, x=["N", 4], weights={"wr": (4, 6), "k": ints(chosen), "e": np.ones(6, np.float32)}
        )
        assert len(analyze(ir.from_proto(model)).groups) == groups


POSITIONS = {
    "arithmetic": ("j = Add(i, one) f = Cast<to=1>(j)", "Add 'Add2' takes positions"),
    "an axis of the data": ("f = Gather<axis=0>(table, i)", "from an axis of the data"),
}


@pytest.mark.parametrize("way", POSITIONS)
def test_positions_that_go_elsewhere_freeze_what_they_number(way: str) -> None:
    operator, reason = POSITIONS[way]
    nodes = f"r = MatMul(x, wr) v, i = TopK(r, k) {operator} y = Add(f, v)"
    weights = {"wr": (4, 6), "k": ints(2), "one": ints(1)}
    found = trial(tiny(nodes, x={"x": ["N", 4], "table": [6]}, weights=weights))
    assert any(reason in f.reason for f in found.analysis.frozen), found.analysis.frozen
    assert found.removed == 0
    assert found.proof.relative_error < 1e-6


def test_positions_that_are_an_output_freeze_what_they_number() -> None:
    weights = {"wr": (4, 6), "k": ints(2)}
    model = tiny(
        "r = MatMul(x, wr) y, i = TopK(r, k) z = Cast<to=1>(i)", x=["N", 4], weights=weights, y=["y", "z"]
    )
    found = trial(model)
    assert any("positions that TopK found" in f.reason for f in found.analysis.frozen)
    assert found.removed == 0


def test_a_number_chosen_at_run_time_freezes() -> None:
    nodes = "r = MatMul(x, wr) y, i = TopK(r, k)"
    model = tiny(nodes, x={"x": ["N", 4], "k": [1]}, weights={"wr": (4, 6)}, dtypes={"k": 7})
    analysis = analyze(ir.from_proto(model))
    assert not analysis.groups
    assert any("chosen at run time" in f.reason for f in analysis.frozen)


def test_features_of_grouped_query_attention_leave_in_blocks_its_kernels_take() -> None:
    found = trial(CASES["grouped-query attention, rotary"]())
    dims = next(g for g in found.analysis.groups if g.kind == "head_dim")
    assert dims.size == 64 // 16
    assert found.weight("c").shape[1] == 32 // 2
    assert found.proof.relative_error < 2e-6
