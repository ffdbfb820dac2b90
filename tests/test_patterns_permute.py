"""Channels change places so that N:M loses less: the network stays what it was, and more weight is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import half
from models import (
    concat_net,
    depthwise_se_cnn,
    grouped_cnn,
    mlp,
    option_a_cnn,
    random_feeds,
    residual_cnn,
    save,
    save_samples,
    split_net,
    transformer_encoder,
)

from condensec import api
from condensec.passes.contraction import places
from condensec.passes.groups import analyze
from condensec.passes.permute import Permuted, _best, _moved, permute
from condensec.passes.prune import prune, with_weights
from condensec.runner import Session

MAKE: dict[str, Any] = {
    "mlp": mlp, "residual": residual_cnn, "option a": option_a_cnn, "depthwise": depthwise_se_cnn,
    "grouped": grouped_cnn, "concat": concat_net, "split": split_net, "transformer": transformer_encoder,
}  # fmt: skip


def permuted(name: str, keep: float) -> tuple[ir.Model, Permuted, list[Any], dict[str, np.ndarray]]:
    analysis = analyze(ir.from_proto(MAKE[name]()))
    units = half(analysis, 1, keep) if keep < 1 else {}
    model = prune(analysis, units).model
    weights = {n: v.const_value.numpy() for n, v in model.graph.initializers.items()}  # type: ignore[union-attr]
    fit = [p for p in places(model)[0] if p.size % 4 == 0]
    return model, permute(analysis, units, weights, fit, 2, 4), fit, weights


@pytest.mark.parametrize("keep", [1.0, 0.5])
@pytest.mark.parametrize("name", MAKE)
def test_the_network_computes_the_same_in_another_order(name: str, keep: float) -> None:
    model, found, fit, weights = permuted(name, keep)
    if not found.groups:
        assert keep < 1 or not fit
        return
    feeds = random_feeds(MAKE[name](), 3)
    after = with_weights(model, found.weights)
    a, b = (Session(m, optimize=False).run(feeds)["logits"] for m in (model, after))
    assert np.abs(a - b).max() <= 1e-5 * max(1.0, np.abs(a).max())
    wrong = {n: np.roll(w, 1, 0) if n == next(iter(found.weights)) else w for n, w in found.weights.items()}
    c = Session(with_weights(model, wrong), optimize=False).run(feeds)["logits"]
    assert np.abs(a - c).max() > 1e-4  # the control: one weight in another order than the rest

    def kept(of: Any) -> float:
        total = 0.0
        for place in fit:
            matrix = np.abs(place.matrix(of.get(place.weight, weights[place.weight]))).reshape(-1, 4)
            total += float(np.square(np.sort(matrix, axis=1)[:, 2:]).sum())
        return total

    assert kept(found.weights) > kept({})


def test_the_order_says_where_each_channel_came_from() -> None:
    _model, found, _, weights = permuted("residual", 1.0)
    for name, by_axis in found.order.items():
        moved = weights[name]
        for axis, index in by_axis.items():
            moved = np.take(moved, index, axis=axis)
            assert sorted(index) == list(range(weights[name].shape[axis]))
        assert np.array_equal(moved, found.weights[name])


def test_units_of_several_indices_move_whole() -> None:
    unit = np.array([0, 0, 1, 1, -1, 2, 2])
    assert _moved(unit, np.array([2, 0, 1])).tolist() == [5, 6, 0, 1, 4, 2, 3]


def test_large_weights_are_spread_over_the_blocks() -> None:
    prices = np.tile(np.array([9.0, 9.0, 9.0, 9.0, 1.0, 1.0, 1.0, 1.0]), (5, 1))
    order = _best(prices, 2, 4, 0)
    assert order is not None
    blocks = prices[0][order].reshape(2, 4)
    assert (np.sort(blocks, axis=1) == [1.0, 1.0, 9.0, 9.0]).all()
    assert _best(np.ones((3, 8)), 2, 4, 0) is None  # nothing to gain


def test_a_run_says_that_channels_moved_and_heals_them_in_their_places(tmp_path: Path) -> None:
    path, data = save(residual_cnn(), tmp_path), save_samples(residual_cnn(), tmp_path / "d.npz", count=96)
    report = api.compress(
        path, output=tmp_path / "o", data=data, patterns="2:4", target="mobile-cpu", jobs=1,
        heal="epochs=1,closed-form=off,lr=0.01,batch=16", max_drop=float("inf"),
    )  # fmt: skip
    (found,) = report.patterns
    assert (report.status, found.violations) == ("ok", 0)
    assert any("changed places" in note for note in found.notes)
    assert report.healing.steps > 0
    assert len(onnx.load(tmp_path / "o" / "model.onnx").graph.node) > 3
