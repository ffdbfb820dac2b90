"""Weights with several users: one weight where their cuts agree, copies where sharing would freeze a cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from cutting import Trial, feeds_of, tiny, trial
from onnx import TensorProto, helper
from operator_cases import ints

from condensec import io, verify
from condensec.axes import Axes, Term
from condensec.passes.groups import analyze
from condensec.passes.prune import carried, prune, set_weight

TIED = "e = Gather(emb, x) m = MatMul(e, w1) r = Relu(m) n = MatMul(r, w2) a = Add(e, n) t = Transpose(emb)"


def both_ends(view: str = "", seen: str = "W", **weights: object) -> Trial:
    """A weight at both ends: first its columns are free and its rows frozen, then the other way round."""
    nodes = f"{view} h = MatMul(x, {seen}) r = Relu(h) z = MatMul(r, W2) s = Relu(z) y = MatMul(s, {seen})"
    return trial(tiny(nodes, x=["N", 5, 4], weights={"W2": (8, 4), **weights}))  # type: ignore[dict-item]


def sizes(found: Trial) -> dict[str, tuple[int, ...]]:
    return {n: tuple(v.shape.numpy()) for n, v in found.cut.model.graph.initializers.items() if v.shape}


def caught(found: Trial, weight: str) -> bool:
    """Whether the oracle sees that a weight's slices are in the wrong order."""
    value = found.cut.model.graph.initializers[weight]
    array, tensor = found.weight(weight), value.const_value
    assert tensor is not None
    set_weight(value, array[::-1], tensor.dtype)
    try:
        feeds = feeds_of(found.original, found.analysis)
        return not verify.check(ir.from_proto(found.original), found.cut.plan, found.cut.model, feeds).passed
    finally:
        set_weight(value, array, tensor.dtype)


# -- apart ----------------------------------------------------------------------------------------------


def test_a_matrix_that_is_frozen_at_one_use_is_cut_at_the_other() -> None:
    found = both_ends(W=(4, 8))
    assert sizes(found) == {"W2": (4, 2), "W.copy0": (4, 4), "W.copy1": (2, 8)}
    assert {s.of for s in found.cut.plan.splits.values()} == {"W"}
    assert found.proof.relative_error < 1e-6
    assert caught(found, "W.copy0")
    assert caught(found, "W.copy1")


@pytest.mark.parametrize("view", ["T = Transpose(W)", "i = Identity(W) T = Transpose(i)"])
def test_users_that_see_it_through_a_view_get_views_of_their_copies(view: str) -> None:
    found = both_ends(view, "T", W=(8, 4))
    assert sizes(found) == {"W2": (4, 2), "W.copy0": (4, 4), "W.copy1": (8, 2)}
    assert found.proof.relative_error < 1e-6
    assert caught(found, "W.copy0")


def test_scales_of_a_quantized_matrix_go_with_its_copies() -> None:
    rng = np.random.default_rng(0)
    quantized = {
        "W": rng.integers(-99, 99, (4, 8)).astype(np.int8),
        "scale": rng.uniform(0.01, 0.02, 8).astype(np.float32),
        "zero": np.zeros(8, np.int8),
    }
    found = both_ends("D = DequantizeLinear<axis=1>(W, scale, zero)", "D", **quantized)
    assert sizes(found)["scale.copy0"] == (4,)
    assert sizes(found)["scale.copy1"] == (8,)
    assert found.proof.relative_error < 1e-6
    assert caught(found, "scale.copy0")


def test_a_half_precision_matrix_behind_a_cast() -> None:
    half = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float16)
    found = both_ends("C = Cast<to=1>(W)", "C", W=half)
    assert sizes(found)["W.copy0"] == (4, 4)
    assert found.proof.relative_error < 1e-6


def test_what_isnt_cut_in_the_end_is_one_weight_again_with_one_view() -> None:
    nodes = "T = Transpose(W) h = MatMul(x, T) r = Relu(h) z = MatMul(r, W2) s = Relu(z) y = MatMul(s, T)"
    found = trial(tiny(nodes, x=["N", 5, 4], weights={"W": (8, 4), "W2": (8, 4)}), units={})
    assert not found.cut.plan.splits
    assert sizes(found) == {"W": (8, 4), "W2": (8, 4)}
    assert [n.op_type for n in found.cut.model.graph].count("Transpose") == 1


def test_uses_that_agree_share_a_copy_beside_one_that_does_not() -> None:
    """Two users in the middle are alike; the third's columns are the graph's output."""
    nodes = """a = MatMul(x, w0) b = Relu(a) m = MatMul(b, W) r = Relu(m) p = MatMul(r, v) c = Add(b, p)
        n = MatMul(c, W) s = Relu(n) q = MatMul(s, v) d = Add(c, q) y = MatMul(d, W)"""
    found = trial(tiny(nodes, x=["N", 5, 4], weights={"w0": (4, 6), "W": (6, 8), "v": (8, 6)}))
    assert sizes(found) == {"w0": (4, 3), "v": (4, 3), "W.copy0": (3, 4), "W.copy2": (3, 8)}
    splits, slices = found.cut.plan.splits, found.cut.plan.slices
    assert set(splits) == {"W.copy0", "W.copy1", "W.copy2"}
    assert slices["W.copy0"] == slices["W.copy1"] != slices["W.copy2"]
    assert found.proof.relative_error < 1e-6
    assert caught(found, "W.copy0")


def test_a_weight_named_by_freeze_is_frozen_with_all_its_copies() -> None:
    nodes = "h = MatMul(x, W) r = Relu(h) z = MatMul(r, W2) s = Relu(z) y = MatMul(s, W)"
    model = tiny(nodes, x=["N", 5, 4], weights={"W": (4, 8), "W2": (8, 4)})
    assert trial(model, freeze="^W$").removed == 0
    assert trial(model).removed > 0


def test_shared_texts_are_no_weights() -> None:
    nodes = "a = Conv(x, w1) b = Relu(a) y = Conv(b, w2) t = Identity(words) u = Identity(words)"
    model = tiny(nodes, x=["N", 3, 5, 5], weights={"w1": (6, 3, 1, 1), "w2": (4, 6, 1, 1)})
    model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [2], [b"yes", b"no"]))
    model.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.STRING, [2]) for n in "tu")
    cut = prune(analyze(ir.from_proto(model)), {"g0": [0, 2, 3]})
    assert [w.name for w in ir.to_proto(cut.model).graph.initializer] == ["w1", "w2", "words"]
    assert not cut.plan.splits


def test_apart_it_leaves_fewer_macs_than_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: tied whatever it costs, the graph's output freezes all of the weight's axes."""

    def left() -> float:
        found = both_ends(W=(4, 8)).analysis
        return found.macs({a.id: a.size // 2 for g in found.groups for a in g.atoms}) / found.macs()

    def always(self: Axes, pairs: list[tuple[Term, Term]]) -> bool:
        for a, b in pairs:
            self.unify(a, b)
        return True

    apart = left()
    monkeypatch.setattr(Axes, "attempt", always)
    assert (apart, left()) == (pytest.approx(5 / 12), 1.0)


# -- together -------------------------------------------------------------------------------------------


def tied(tmp_path: Path, head: str) -> tuple[Trial, int]:
    weights = {"emb": (4000, 64), "w1": (64, 8), "w2": (8, 64)}
    model = tiny(f"{TIED} {head}", x=["N", 5], weights=weights, dtypes={"x": TensorProto.INT64})
    found = trial(model)
    io.save(found.cut.model, tmp_path / "cut.onnx")
    return found, (tmp_path / "cut.onnx").stat().st_size


def test_a_tied_embedding_stays_one_weight_in_the_file(tmp_path: Path) -> None:
    found, size = tied(tmp_path, "y = MatMul(a, t)")
    assert not found.cut.plan.splits
    assert size < 1.01 * 4000 * 32 * 4
    assert caught(found, "w2")


def test_an_embedding_whose_rows_can_be_cut_in_the_head_is_taken_apart(tmp_path: Path) -> None:
    """The head's columns feed another layer: there they're neurons, in the embedding they're words."""
    nodes = f"{TIED} u = MatMul(a, t) v = Relu(u) y = MatMul(v, w3)"
    model = tiny(
        nodes, x=["N", 5], weights={"emb": (40, 6), "w1": (6, 8), "w2": (8, 6), "w3": (40, 3)},
        dtypes={"x": TensorProto.INT64},
    )  # fmt: skip
    found = trial(model)
    assert sizes(found)["emb.copy0"] == (40, 3)
    assert sizes(found)["emb.copy1"] == (20, 3)
    assert found.proof.relative_error < 1e-6
    assert caught(found, "emb.copy1")


def test_layers_that_share_their_weights_stay_one() -> None:
    layers, x = [], "b"
    for k in range(4):
        layers.append(f"m{k} = MatMul({x}, W) r{k} = Relu(m{k}) p{k} = MatMul(r{k}, v) s{k} = Add({x}, p{k})")
        x = f"s{k}"
    nodes = f"a = MatMul(x, w0) b = Relu(a) {' '.join(layers)} y = MatMul({x}, w3)"
    weights = {"w0": (4, 6), "W": (6, 8), "v": (8, 6), "w3": (6, 3)}
    found = trial(tiny(nodes, x=["N", 5, 4], weights=weights))
    assert not found.cut.plan.splits
    assert sizes(found) == {"w0": (4, 3), "W": (3, 4), "v": (4, 3), "w3": (3, 3)}
    assert found.proof.relative_error < 1e-6
    assert caught(found, "v")


def test_an_unrolled_recurrence_keeps_its_one_weight_though_that_ties_its_two_axes() -> None:
    steps, h = [], "h0"
    for k in range(3):
        steps.append(f"m{k} = MatMul({h}, W) h{k + 1} = Tanh(m{k})")
        h = f"h{k + 1}"
    nodes = f"h0 = MatMul(x, w0) {' '.join(steps)} y = MatMul({h}, w3)"
    found = trial(tiny(nodes, x=["N", 5, 4], weights={"w0": (4, 6), "W": (6, 6), "w3": (6, 3)}))
    assert sizes(found) == {"w0": (4, 3), "W": (3, 3), "w3": (3, 3)}
    assert len(found.analysis.groups) == 1
    assert found.proof.relative_error < 1e-6


# -- deeper cuts ----------------------------------------------------------------------------------------


def test_a_copy_that_another_stood_for_keeps_its_healed_values_when_it_goes_its_own_way() -> None:
    nodes = "a = Conv(x, w1, b) c = Relu(a) d = Conv(c, w2, b) e = Relu(d) f = Conv(e, w3, b) y = Conv(f, w4)"
    weights = {"w1": (6, 3, 1, 1), "w2": (6, 6, 1, 1), "w3": (6, 6, 1, 1), "w4": (4, 6, 1, 1), "b": (6,)}
    analysis = analyze(ir.from_proto(tiny(nodes, x=["N", 3, 5, 5], weights=weights)))
    first = prune(analysis, {"g0": [0, 1, 2], "g1": [0, 1, 2], "g2": [3, 4, 5]}).plan
    second = prune(analysis, {"g0": [0, 1], "g1": [1, 2], "g2": [4, 5]}).plan
    healed = {"b.copy0": np.array([10, 11, 12]), "b.copy2": np.array([23, 24, 25])}
    deeper = carried(healed, first, second)
    assert {n: list(a) for n, a in deeper.items()} == {
        "b.copy0": [10, 11], "b.copy1": [11, 12], "b.copy2": [24, 25],
    }  # fmt: skip


def test_copies_that_were_healed_apart_stay_apart_when_they_are_cut_alike() -> None:
    nodes = "a = Conv(x, w1, b) c = Relu(a) d = Conv(c, w2, b) e = Relu(d) y = Conv(e, w3)"
    weights = {"w1": (6, 3, 1, 1), "w2": (6, 6, 1, 1), "w3": (4, 6, 1, 1), "b": (6,)}
    analysis = analyze(ir.from_proto(tiny(nodes, x=["N", 3, 5, 5], weights=weights)))
    healed = {"b.copy0": np.array([10.0, 11, 12]), "b.copy1": np.array([20.0, 21, 23])}
    first = prune(analysis, {"g0": [0, 1, 2], "g1": [0, 1, 3]}, apart=healed).plan
    alike = {"g0": [0, 1], "g1": [0, 1]}
    assert not prune(analysis, alike).plan.splits
    second = prune(analysis, alike, apart=healed)
    assert set(second.plan.splits) == {"b.copy0", "b.copy1"} <= set(second.model.graph.initializers)
    deeper = carried(healed, first, second.plan)
    assert {n: list(a) for n, a in deeper.items()} == {"b.copy0": [10, 11], "b.copy1": [20, 21]}


def test_a_shape_that_several_branches_share_follows_each_of_them() -> None:
    """Optimizers compute `[batch, tokens, heads, features]` once for queries, keys and values."""
    nodes = """s = Shape(x) n = Gather<axis=0>(s, zero) nu = Unsqueeze(n, ax)
        sh = Concat<axis=0>(nu, five, three, four)
        q = MatMul(x, w1) k = MatMul(x, w2) v = MatMul(x, w3)
        qr = Reshape(q, sh) kr = Reshape(k, sh) vr = Reshape(v, sh)
        qt = Transpose<perm=[0,2,1,3]>(qr) kt = Transpose<perm=[0,2,3,1]>(kr)
        vt = Transpose<perm=[0,2,1,3]>(vr)
        p = MatMul(qt, kt) m = Softmax<axis=-1>(p) o = MatMul(m, vt)
        ot = Transpose<perm=[0,2,1,3]>(o) back = Concat<axis=0>(nu, five, minus)
        of = Reshape(ot, back) y = MatMul(of, w4)"""
    weights = {
        "zero": np.int64(0), "ax": ints(0), "five": ints(5), "three": ints(3), "four": ints(4),
        "minus": ints(-1), "w1": (6, 12), "w2": (6, 12), "w3": (6, 12), "w4": (12, 5),
    }  # fmt: skip
    model = tiny(nodes, x=["N", 5, 6], weights=weights)
    analysis = analyze(ir.from_proto(model))
    sizes = sorted((g.size, len(g.axes)) for g in analysis.groups)
    assert sizes == [(3, 4), (4, 2), (4, 2)]  # heads; features of queries and keys; of values
    for number, group in enumerate(analysis.groups):  # each alone, then all to different widths
        found = trial(model, units={group.id: list(range(1, group.size - number % 2))}, batches=(None, 3))
        assert found.proof.relative_error < 2e-6
    units = {g.id: list(range(g.size - 1 - i % 3)) or [0] for i, g in enumerate(analysis.groups)}
    found = trial(model, units=units, batches=(None, 3))
    assert found.proof.relative_error < 2e-6
    shapes = [n for n in found.cut.model.graph if n.op_type == "Concat"]
    assert len(shapes) == 3  # two for the branches, one behind; none that nobody reads
    assert all(o.uses() for n in shapes for o in n.outputs)
