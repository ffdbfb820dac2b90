"""Inner values compared unit by unit: the right channels, as a loss, and around what has no gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import half, tiny
from healing_tools import Setting, noisy
from models import random_feeds

from condensec.data import Samples
from condensec.errors import ConfigError, HealError
from condensec.healing import features
from condensec.healing.static import read
from condensec.masked import masked
from condensec.passes.groups import analyze
from condensec.passes.prune import prune
from condensec.runner import Session
from condensec.specs import parse_losses

BUILDERS = [
    models.residual_cnn, models.option_a_cnn, models.depthwise_se_cnn, models.grouped_cnn, models.concat_net,
    models.transformer_encoder, models.mlp,
]  # fmt: skip


def _cut(build: Callable[[], onnx.ModelProto]) -> tuple[onnx.ModelProto, onnx.ModelProto, Any]:
    model = build()
    feeds = random_feeds(model, 4, seed=5)
    analysis = analyze(ir.from_proto(model), {k: v.shape for k, v in feeds.items()})
    cut = prune(analysis, half(analysis))
    return ir.to_proto(analysis.model), ir.to_proto(cut.model), cut.plan


@pytest.mark.parametrize("build", BUILDERS, ids=lambda f: f.__name__)
def test_matched_channels_are_those_the_student_has(build: Callable[[], onnx.ModelProto]) -> None:
    """In the masked original (cut weights zero), the matched channels hold what the cut model computes."""
    original, student, plan = _cut(build)
    known = features.look(student, plan.slices)
    feeds = random_feeds(original, 8, seed=6)
    names = list(known.matches)
    assert len(names) >= 5
    assert set(known.blocks) & set(names)
    zeroed = masked(ir.from_proto(original), plan)
    theirs = Session(zeroed, extra_outputs=names).run_samples(Samples(feeds))
    mine = Session(student, extra_outputs=names).run_samples(Samples(feeds))
    full = Session(original, extra_outputs=names).run_samples(Samples(feeds))
    shape_of = {name: value.shape for name, value in full.items()}
    narrower = 0
    for name in names:
        match = known.matches[name]
        if theirs[name].shape == mine[name].shape != shape_of[name]:
            continue  # around a norm the masked original has only the channels that are left
        restricted = match.of(theirs[name])
        assert restricted.shape == mine[name].shape, name
        scale = float(np.abs(mine[name]).max())
        assert np.abs(restricted - mine[name]).max() <= 1e-4 * max(scale, 1.0), name
        if match.kept is not None and len(match.kept) < theirs[name].shape[match.axis]:
            narrower += 1
            rolled = np.roll(theirs[name], 1, match.axis)  # the control: other channels differ
            assert np.abs(match.of(rolled) - mine[name]).max() > 1e-3 * scale
    assert narrower


def test_few_points_are_spread_over_the_depth() -> None:
    names = [f"b{i}" for i in range(20)]
    chosen = features.spread(names, 4)
    assert chosen == ["b4", "b9", "b14", "b19"]
    assert features.spread(names[:3], 4) == names[:3]


@pytest.mark.parametrize("build", [models.residual_cnn, models.transformer_encoder], ids=lambda f: f.__name__)
def test_block_outputs_come_nearer_where_they_are_asked_for(
    tmp_path: Path, build: Callable[[], onnx.ModelProto]
) -> None:
    original, student, plan = _cut(build)
    setting = Setting(tmp_path, original, student, count=256)
    known = features.look(student, plan.slices)
    fresh = Samples(random_feeds(original, 64, seed=9))
    theirs = Session(original, extra_outputs=known.blocks).run_samples(fresh)

    def distance(weights: Any) -> float:
        mine = Session(setting.healed(weights), extra_outputs=known.blocks).run_samples(fresh)
        errors = []
        for name in known.blocks:
            wanted = known.matches[name].of(theirs[name]) if name in known.matches else theirs[name]
            errors.append(np.square(mine[name] - wanted).mean() / wanted.var())
        return float(np.mean(errors))

    losses: dict[str, Any] = {"output": 1.0, "features": 4.0}
    plain = setting.heal(epochs=8, lr=0.01, slices=plan.slices)
    led = setting.heal(epochs=8, lr=0.01, slices=plan.slices, losses=losses)
    assert distance(led.weights) < 0.9 * distance(plain.weights)
    assert distance(led.weights) < distance({})


MASKS = {"float": np.float32(np.triu(np.full((1, 4, 4), -3.4e38), 1)), "bool": np.tri(4, dtype=bool)[None]}


def _masked_attention(mask: np.ndarray) -> onnx.ModelProto:
    """Attention over four positions with a residual sum behind it; a constant says who sees whom."""
    added = "bias = Where(seen, zero, low)" if mask.dtype == bool else "bias = Identity(mask)"
    name = "seen" if mask.dtype == bool else "mask"
    return tiny(
        f"""
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        kt = Transpose<perm=[0,2,1]>(k)
        scores = MatMul(x, kt)
        {added}
        masked = Add(scores, bias)
        p = Softmax<axis=-1>(masked)
        mixed = MatMul(p, v)
        out = MatMul(mixed, wo)
        sum = Add(k, out)
        y = MatMul(sum, wy)
        """,
        x=["N", 4, 8],
        weights={
            "wk": (8, 8), "wv": (8, 8), "wo": (8, 8), "wy": (8, 3), name: mask, "zero": np.float32(0),
            "low": np.float32(-3.4e38),
        },
    )  # fmt: skip


@pytest.mark.parametrize("kind", MASKS)
def test_masked_scores_are_no_block_of_their_own(kind: str) -> None:
    student = _masked_attention(MASKS[kind])
    assert features.look(student, {}).blocks == ("sum",)
    control = _masked_attention(np.float32(np.triu(np.full((1, 4, 4), -3.0), 1)))  # a bias by position
    assert features.look(control, {}).blocks == ("masked", "sum")


@pytest.mark.parametrize("low", [-3.4e38, -np.inf, np.nan, -1e9])
def test_values_with_a_mask_in_them_are_not_compared(low: float) -> None:
    model = models.mlp()
    graph, _ = read(model, random_feeds(model, 16, seed=0))
    name = graph.nodes[0].output[0]
    plain = np.random.default_rng(0).normal(size=graph.shape(name)).astype(np.float32)
    hidden = np.where(plain > 0, plain, np.float32(low))
    insides = features.Insides({}, ())
    assert not features.terms(graph, insides, {name: hidden}, [name], 1.0, 16)
    (term,) = features.terms(graph, insides, {name: plain}, [name], 1.0, 16)  # the control
    assert term.scale == pytest.approx(plain.var())


def _interrupted() -> onnx.ModelProto:
    """Two convolutions, a sampling of the picture at fixed places (no gradient), and two more."""
    rng = np.random.default_rng(0)
    grid = rng.integers(-9, 10, (1, 6, 6, 2))
    return tiny(
        """
        a = Conv<pads=[1,1,1,1]>(x, w1, b1)
        ra = Relu(a)
        b = Conv<pads=[1,1,1,1]>(ra, w2, b2)
        n = Shape<start=0,end=1>(x)
        to = Concat<axis=0>(n, rest)
        fixed = Cast<to=1>(grid)
        scaled = Div(fixed, ten)
        places = Expand(scaled, to)
        g = GridSample(b, places)
        c = Conv<pads=[1,1,1,1]>(g, w3, b3)
        rc = Relu(c)
        y = Conv(rc, w4, b4)
        """,
        x=["N", 3, 8, 8],
        weights={
            "w1": (8, 3, 3, 3), "b1": (8,), "w2": (6, 8, 3, 3), "b2": (6,), "w3": (8, 6, 3, 3), "b3": (8,),
            "w4": (4, 8, 1, 1), "b4": (4,), "grid": grid, "rest": np.asarray([6, 6, 2], np.int64),
            "ten": np.float32(10),
        },
    )  # fmt: skip


def test_healing_goes_on_around_what_has_no_gradient(tmp_path: Path) -> None:
    teacher = onnx.shape_inference.infer_shapes(_interrupted())
    setting = Setting(tmp_path, teacher, noisy(teacher), count=256, labelled=False)
    result = setting.heal(epochs=10, batch=32)
    assert [node for node, _ in result.around] == ["GridSample8"]
    assert "GridSample" in result.around[0][1]
    # everything trains: what is before it by the original's values there, what is behind by the outputs
    assert set(result.weights) == {"w1", "b1", "w2", "b2", "w3", "b3", "w4", "b4"}
    assert result.frozen == ()
    assert result.after < 0.5 * result.before


def test_without_a_counterpart_the_part_before_is_frozen_and_named(tmp_path: Path) -> None:
    """The control: the teacher has no value of that name, so nothing can be learned there."""
    teacher = onnx.shape_inference.infer_shapes(_interrupted())
    student = noisy(teacher)
    for node in student.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name in ("a", "ra", "b"):
                    names[i] = f"other.{name}"
    del student.graph.value_info[:]
    setting = Setting(tmp_path, teacher, student, count=128, labelled=False)
    result = setting.heal(epochs=4, batch=32)
    assert result.around == ()
    assert {name for name, _ in result.frozen} == {"w1", "b1", "w2", "b2"}
    assert all("GridSample" in reason for _, reason in result.frozen)
    assert set(result.weights) == {"w3", "b3", "w4", "b4"}


def test_losses_are_read_and_refused() -> None:
    assert parse_losses("output=1, features=0.5") == {"output": 1.0, "features": 0.5}
    assert parse_losses("kl=2,ce=0") == {"kl": 2.0, "ce": 0.0}
    for text in ("feature=1", "kl", "kl=x", "kl=-1", "kl=inf", "kl=0", ""):
        with pytest.raises(ConfigError, match="--loss"):
            parse_losses(text)


def test_a_loss_that_needs_labels_says_so(tmp_path: Path) -> None:
    setting = Setting(tmp_path, models.mlp(), noisy(models.mlp()), count=64, labelled=False)
    with pytest.raises(HealError, match="can be compared by ce; ce needs class numbers"):
        setting.heal(epochs=1, losses={"ce": 1.0})


def test_single_losses_train(tmp_path: Path) -> None:
    setting = Setting(tmp_path, models.mlp(), noisy(models.mlp()), count=128)
    kinds: list[dict[str, float]] = [
        {"kl": 1.0},
        {"mse": 1.0},
        {"cosine": 1.0},
        {"ce": 1.0},
        {"features": 1.0},
    ]
    for losses in kinds:
        result = setting.heal(epochs=4, lr=0.01, losses=losses)
        assert result.after < result.before, losses
