"""Zeros in a pattern: masks, the surgeon's update, the axis of N:M, the guard, the checker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from line_tools import FAST
from models import mlp, save, save_samples, transformer_encoder
from onnx import numpy_helper

from condensec import api
from condensec.errors import ConfigError, PostconditionError
from condensec.passes import patterns, surgeon
from condensec.passes.contraction import Place, columns, places
from condensec.passes.patterns import Layer, Zeros
from condensec.passes.patterns.n_m import best
from condensec.report.format import pattern_text
from condensec.report.model import read_report
from condensec.runner import Session
from condensec.sparsity import Sparsity, parse_sparsity
from condensec.stages import patterns as stage
from condensec.stages import zeros as zeros_stage


def conv(shape: tuple[int, ...], op: str = "Conv", **attributes: Any) -> Place:
    x, w = ir.Value(name="x"), ir.Value(name="w")
    node = ir.node(op, [x, w], attributes)
    groups = attributes.get("group", 1)
    axis = 0 if op == "ConvTranspose" else 1
    return Place("w", node, "x", axis, shape[0] // groups if axis == 0 else shape[1], groups, shape)


def product(shape: tuple[int, int], index: int, **attributes: int) -> Place:
    value = ir.Value(name="x")
    weight = ir.Value(name="w", shape=ir.Shape(shape), const_value=ir.tensor(np.ones(shape, np.float32)))
    node = ir.node(
        "Gemm" if attributes else "MatMul", [value, weight] if index else [weight, value], attributes
    )
    graph = ir.Graph([value], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 17})
    found, _ = places(ir.Model(graph, ir_version=9))
    return found[0]


@pytest.mark.parametrize(
    "place",
    [
        conv((6, 4, 3, 2)),
        conv((6, 2, 3), group=3),
        conv((6, 4, 3, 3), "ConvTranspose", group=2),
        product((5, 7), 1),
        product((5, 7), 0),
        product((5, 7), 1, transB=1),
    ],
    ids=["conv", "grouped", "transposed", "right", "left", "turned"],
)
def test_the_matrix_view_comes_back_and_runs_along_the_contraction(place: Place) -> None:
    array = np.arange(np.prod(place.shape), dtype=np.float32).reshape(place.shape)
    matrix = place.matrix(array)
    assert np.array_equal(place.array(matrix), array)
    along = np.moveaxis(array, place.axis, -1)
    step = along[..., 1].flat[0] - along[..., 0].flat[0]
    assert np.all(np.diff(matrix.reshape(-1, place.size), axis=1) == step)
    other = next(i for i in range(len(place.shape)) if i != place.axis)  # the control: another axis
    wrong = np.moveaxis(array, other, -1)
    assert wrong[..., 1].flat[0] - wrong[..., 0].flat[0] != step


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 0, 2, 1], "strides": [2, 1]},
        {"dilations": [2, 1], "group": 2},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    ],
)
def test_unfolded_inputs_times_the_matrix_are_the_convolution(attributes: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    groups = attributes.get("group", 1)
    shape = (4, 4 // groups, 3, 2)
    x, w = rng.normal(size=(2, 4, 7, 8)).astype(np.float32), rng.normal(size=shape).astype(np.float32)
    place = conv(shape, **attributes)
    found = columns(place, x, 10**9)
    assert found is not None
    product_ = np.matmul(found, place.matrix(w).transpose(0, 2, 1))  # [groups, positions, rows]
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    infos = [onnx.helper.make_tensor_value_info(n, 1, [None] * 4) for n in ("x", "w", "y")]
    graph = onnx.helper.make_graph([node], "g", infos[:2], infos[2:])
    opset = [onnx.helper.make_opsetid("", 17)]
    session = Session(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8))
    wanted = session.run({"x": x, "w": w})["y"]
    flat = np.moveaxis(wanted, 1, -1).reshape(-1, 4)
    assert np.allclose(np.moveaxis(product_, 0, 1).reshape(-1, 4), flat, atol=1e-4)
    assert not np.allclose(flat, np.roll(flat, 1, axis=0), atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31))
def test_the_best_n_of_m_are_kept(n: int, more: int, seed: int) -> None:
    m = n + more
    prices = np.random.default_rng(seed).random((3, 4 * m))
    stay = best(prices, n, m).reshape(3, 4, m)
    assert np.all(stay.sum(axis=-1) == n)
    cost = prices.reshape(3, 4, m)
    assert np.all(np.where(stay, cost, 9.0).min(axis=-1) > np.where(stay, -1.0, cost).max(axis=-1))


def correlated(width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(500, width // 4)) @ rng.normal(size=(width // 4, width))
    x += 0.3 * rng.normal(size=x.shape)
    moment: np.ndarray = x.T @ x / len(x)
    return moment


def test_the_surgeon_undoes_more_damage_than_leaving_the_others_as_they_are() -> None:
    weight = np.random.default_rng(1).normal(size=(8, 64))
    moment = correlated(64)
    new, stay = surgeon.solve(weight, surgeon.factor(moment), lambda p, _: best(p, 2, 4), 32)
    assert not new[~stay].any()
    plain = np.where(best(weight**2, 2, 4), weight, 0.0)
    masked = np.where(stay, weight, 0.0)  # the same mask without the update
    lost = [surgeon.damage(weight[None], w[None], moment[None]) for w in (new, masked, plain)]
    assert lost[0] < 0.7 * lost[1]
    assert lost[0] < 0.7 * lost[2]


def test_the_update_for_one_column_is_the_best_refit() -> None:
    weight, moment = np.random.default_rng(1).normal(size=(3, 12)), correlated(12)
    keep = np.ones((3, 12), np.bool_)
    keep[:, 0] = False
    new, _ = surgeon.solve(weight, surgeon.factor(moment), lambda p, start: keep[:, start : start + 4], 4)
    damped = moment + surgeon.RIDGE * np.trace(moment) / 12 * np.eye(12)
    wanted = np.linalg.solve(damped[1:, 1:], damped[1:] @ weight.T).T
    assert np.allclose(new[:, 1:], wanted)
    assert not np.allclose(new[:, 1:], weight[:, 1:], atol=1e-3)  # the control: something was to be made up


def test_without_correlation_the_surgeon_leaves_the_others_alone() -> None:
    weight = np.random.default_rng(1).normal(size=(4, 16))
    new, stay = surgeon.solve(weight, surgeon.factor(np.eye(16)), lambda p, _: best(p, 1, 2))
    assert np.allclose(new, np.where(best(weight**2, 1, 2), weight, 0.0))
    assert stay.mean() == 0.5


def test_a_shared_out_share_is_reached_and_no_layer_is_emptied() -> None:
    rng = np.random.default_rng(2)
    layers = [
        Layer(
            replace(product((64, 32), 1), weight=f"w{i}"),
            rng.normal(size=(64, 32)).astype(np.float32) * scale,
        )
        for i, scale in enumerate((1.0, 0.01, 1.0))
    ]
    made = patterns.get("unstructured")(layers, Sparsity("unstructured", 0.6, method="magnitude"))
    zeros = {name: 1 - z.mask.mean() for name, z in made.items()}
    assert sum(zeros.values()) / 3 == pytest.approx(0.6, abs=1e-3)
    assert zeros["w1"] == pytest.approx(0.99, abs=1e-3)
    even = patterns.get("unstructured")(layers, Sparsity("unstructured", 0.6, method="layerwise"))
    assert {round(1 - z.mask.mean(), 3) for z in even.values()} == {0.6}


def weights(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_n_m_holds_along_the_input_channels_of_the_file(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = api.compress(model, output=out, data=data, patterns="2:4", **FAST)
    (found,) = report.patterns
    assert report.status == "ok"
    assert read_report(out / "report.json") == report
    assert (found.name, found.violations, found.share_reached) == ("2:4", 0, 0.5)
    assert "no multiple of 4" in " ".join(found.left_out.values())  # the three colours
    held = 0
    for name, w in weights(out / "model.onnx").items():
        if w.ndim == 4 and name not in found.left_out:
            groups = np.moveaxis(w, 1, -1).reshape(-1, 4)
            assert np.all(np.count_nonzero(groups, axis=1) <= 2)
            if w.shape[2] > 1:  # the control: kernel positions instead of channels
                assert np.any(np.count_nonzero(w.reshape(-1, 4), axis=1) > 2)
            held += 1
    assert held >= 2
    assert found.zeros == found.weights // 2
    assert found.compressed_bytes < found.bytes
    assert "no speed gain in onnxruntime" in found.notes[-1]
    assert "2:4: 50.0%" in (out / "report.html").read_text(encoding="utf-8")


def test_unstructured_zeros_after_a_cut(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = "channels,neurons,unstructured=0.7"
    report = api.compress(model, output=out, data=data, patterns=asked, budget="macs<=0.7x", **FAST)
    (found,) = report.patterns
    assert report.after.macs < 0.7 * report.before.macs
    assert found.share_reached == pytest.approx(0.7, abs=0.01)
    matrices = [w for w in weights(out / "model.onnx").values() if w.ndim >= 2]
    assert sum(int((w == 0).sum()) for w in matrices) == found.zeros
    dense = api.compress(model, output=tmp_path / "dense", data=data, budget="macs<=0.7x", **FAST)
    assert dense.patterns == ()
    cut = [w for w in weights(tmp_path / "dense" / "model.onnx").values() if w.ndim >= 2]
    assert sum(int((w == 0).sum()) for w in cut) == 0


def test_the_guard_takes_zeros_back(model: Path, data: Path, tmp_path: Path) -> None:
    options = {**FAST, "max_drop": 10.0, "data": data}
    report = api.compress(model, output=tmp_path / "a", patterns="unstructured=0.97:magnitude", **options)
    (found,) = report.patterns
    assert "violations" not in pattern_text(found)
    assert report.status == "budget_not_met"
    assert report.guard.kept
    assert 0 < found.share_reached < 0.97
    options["max_drop"] = 40.0
    report = api.compress(model, output=tmp_path / "b", patterns="3:4:magnitude", **options)
    (found,) = report.patterns
    assert report.status == "budget_not_met"
    assert "taken out: the guard" in found.left_out.values()
    assert found.layers > 0
    assert report.guard.kept


def test_where_no_zero_is_safe_the_dense_model_is_written(tmp_path: Path) -> None:
    path, data = save(mlp(), tmp_path), save_samples(mlp(), tmp_path / "d.npz", count=64)
    options = {**FAST, "max_drop": 0.0, "metric": "cosine", "data": data}
    report = api.compress(path, output=tmp_path / "o", patterns="1:8:magnitude", **options)
    (found,) = report.patterns
    assert report.status == "budget_not_met"
    assert found.zeros == 0
    assert found.notes[0] == "no zeros could be set within the guard"


def test_the_same_run_gives_the_same_bytes(model: Path, data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        api.compress(model, output=tmp_path / name, data=data, patterns="unstructured=0.5", **FAST)
    assert (tmp_path / "a/model.onnx").read_bytes() == (tmp_path / "b/model.onnx").read_bytes()


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_a_target_that_cannot_use_the_pattern_refuses_it(pattern: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Ampere.*sm75"):
        api.compress(model, output=tmp_path / "o", patterns=pattern, target="nvidia-t4")
    with pytest.raises(ConfigError, match="looks at activations"):
        api.compress(model, output=tmp_path / "o", patterns=f"{pattern}:obs", **FAST)


def test_the_checker_finds_a_violation() -> None:
    place = product((8, 4), 1)
    array = np.ones((8, 4), np.float32)
    array[1::2] = 0
    assert patterns.violations(place, array, 2, 4) == 0
    array[1, 2] = 1
    assert patterns.violations(place, array, 2, 4) == 1
    weight = ir.Value(name="w", const_value=ir.tensor(array))
    graph = ir.Graph([], [], nodes=[], initializers=[weight], opset_imports={"": 17})
    wanted = parse_sparsity("2:4")
    assert wanted is not None
    with pytest.raises(PostconditionError, match="1 groups of 'w' break 2:4"):
        stage.count(stage.Outcome(wanted, (place,)), ir.Model(graph, ir_version=9))


def test_filled_zeros_are_noticed() -> None:
    mask = np.array([True, False])
    zeros = {"w": Zeros(mask, np.array([1.0, 0.0]), 0.0)}
    zeros_stage.keep_zeros(zeros, {"w": np.array([2.0, 0.0])})
    with pytest.raises(PostconditionError, match="filled zeros of 'w'"):
        zeros_stage.keep_zeros(zeros, {"w": np.array([2.0, 1e-9])})


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_the_optimizer_keeps_zeros(kind: str) -> None:
    from condensec.healing.worker.optimizer import Flat, Optimizer, Settings
    from condensec.healing.worker.zeros import Zeros

    start = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    for names, stays in ((["w"], True), ([], False)):
        weights, grads = Flat({"b": np.zeros(2), "w": start}), Flat({"b": np.ones(2), "w": np.ones((2, 2))})
        fixed = Zeros(weights, names).reach(0.0)
        optimizer = Optimizer(weights, grads, Settings(kind=kind, lr=0.1, weight_decay=0.1), 0.9, fixed)
        for i in range(5):
            grads.buffer[:] = 1.0
            optimizer.step((i + 1) / 6, optimizer.gradient_norm())
        assert np.array_equal(weights.views["w"] == 0, start == 0) == stays
        assert np.array_equal(optimizer.average[2:].reshape(2, 2) == 0, start == 0) == stays
        assert weights.views["b"].all()  # zeros of a weight that wasn't named are free
        assert weights.views["w"][0, 0] != 1.0


def test_n_m_runs_along_the_rows_of_a_matmul_without_data_too(tmp_path: Path) -> None:
    path = save(transformer_encoder(), tmp_path)
    report = api.compress(path, output=tmp_path / "o", patterns="4:8", **FAST)
    (found,) = report.patterns
    assert (report.status, found.violations, found.share_reached) == ("ok", 0, 0.5)
    before, after = weights(path), weights(tmp_path / "o" / "model.onnx")
    changed = [n for n, w in after.items() if n in before and w.ndim > 1 and (w == 0).mean() >= 0.5]
    assert len(changed) == found.layers > 2
    products = {i for n in onnx.load(path).graph.node if n.op_type == "MatMul" for i in n.input}
    for name in products.intersection(changed):
        groups = after[name].T.reshape(-1, 8)
        assert np.all(np.count_nonzero(groups, axis=1) == 4)
        assert np.any(
            np.count_nonzero(after[name].reshape(-1, 8), axis=1) != 4
        )  # the control: the other axis


def test_training_keeps_the_zeros(model: Path, data: Path, tmp_path: Path) -> None:
    options = {**FAST, "heal": "epochs=1,closed-form=off,lr=0.01,batch=8", "data": data}
    report = api.compress(model, output=tmp_path / "o", patterns="unstructured=0.8:magnitude", **options)
    (found,) = report.patterns
    assert report.healing.steps > 0
    assert found.healed_how == "epochs=1"  # the trained weights are those that were written
    assert found.share_reached == pytest.approx(0.8, abs=1e-3)


def test_blocks_go_as_one_or_stay(model: Path, data: Path, tmp_path: Path) -> None:
    from condensec.passes.patterns import torn

    report = api.compress(model, output=tmp_path / "o", data=data, patterns="1x4=0.5", **FAST)
    (found,) = report.patterns
    assert (report.status, found.violations) == ("ok", 0)
    assert found.share_reached == pytest.approx(0.5, abs=0.02)
    assert any("no multiple of 4" in reason for reason in found.left_out.values())
    place = product((8, 4), 1)
    array = np.ones((8, 4), np.float32)
    array[:4] = 0
    assert torn(place, array, 4) == 0
    array[4, 1] = 0
    assert torn(place, array, 4) == 1


@pytest.mark.parametrize("text", ["1x4=0.5", "1x8=0.25:wanda", "1x2=0.9:magnitude"])
def test_blocks_are_read_and_written_back(text: str) -> None:
    found = parse_sparsity(text)
    assert found is not None
    assert (str(found), found.name) == (text, "blocks")
    for wrong in ("1x1=0.5", "1x4=1.5", "1x4=0.5:best"):
        with pytest.raises(ConfigError):
            parse_sparsity(wrong)


def test_a_block_costs_what_its_weights_do() -> None:
    from condensec.passes.patterns.blocks import best as best_blocks

    prices = np.array([[9.0, 0.0, 1.0, 1.0], [2.0, 2.0, 0.5, 0.1]])
    assert best_blocks(prices, 0.5, 2).tolist() == [[True, True, False, False], [True, True, False, False]]


def test_many_zeros_come_while_it_trains(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zeros_stage, "LEAST_SECONDS", 2.0)
    options = {**FAST, "heal": "minutes=0.4,closed-form=off,lr=0.01,batch=16", "data": data}
    report = api.compress(model, output=tmp_path / "o", patterns="unstructured=0.8:magnitude", **options)
    (found,) = report.patterns
    assert found.share_reached == pytest.approx(0.8, abs=1e-3)
    assert found.notes[0] == "more and more of them while it trained"


def test_zeros_are_stored_sparse_where_the_runtime_reads_it(model: Path, data: Path, tmp_path: Path) -> None:
    target = "x86-avx2"
    options = {**FAST, "data": data, "patterns": "unstructured=0.9:magnitude", "target": target}
    sizes, outputs = {}, {}
    for sparse in (False, True):
        folder = tmp_path / str(sparse)
        report = api.compress(model, output=folder, sparse=sparse, **options)
        path = folder / target / "model.onnx"
        sizes[sparse] = path.stat().st_size
        assert report.targets[target].bytes == sizes[sparse]
        feeds = {"input": np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)}
        outputs[sparse] = next(iter(Session(path).run(feeds).values()))
        kept = onnx.load(path).graph
        assert bool(kept.sparse_initializer) == sparse
    assert sizes[True] < 0.7 * sizes[False]
    assert np.array_equal(outputs[True], outputs[False])


def test_weights_stay_dense_where_sparse_is_larger_or_not_read(tmp_path: Path) -> None:
    from condensec.hardware.sparse import store

    path = save(mlp(), tmp_path)
    before = path.read_bytes()
    assert "none has so many zeros" in store(path, "onnxruntime")
    for runtime in ("tensorrt", "onnxruntime-mobile"):
        assert f"{runtime} isn't known to read" in store(path, runtime)
    assert path.read_bytes() == before


def test_a_training_that_ended_is_not_repeated_when_a_run_is_resumed(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from condensec.stages import finish
    from condensec.stages.heal import Healer

    trained: list[float] = []
    train = Healer.train

    def counted(self: Healer, *args: Any, **more: Any) -> Any:
        trained.append(args[2])
        return train(self, *args, **more)

    def stopped(*args: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Healer, "train", counted)
    options = {**FAST, "heal": "epochs=1,closed-form=off,lr=0.01,batch=16", "data": data}
    options |= {"output": tmp_path / "o", "patterns": "unstructured=0.5:magnitude"}
    with monkeypatch.context() as patch:
        patch.setattr(finish, "write_model", stopped)
        with pytest.raises(KeyboardInterrupt):
            api.compress(model, **options)
    assert len(trained) == 1
    report = api.compress(model, resume=True, **options)
    assert len(trained) == 1
    assert report.patterns[0].healed_how == "epochs=1"
    assert not (tmp_path / "o" / "state").exists()
    api.compress(model, **options)
    assert len(trained) == 2  # the control: a fresh start trains
