"""Fused and recurrent operators in operators with gradients: the same values, and the right gradient."""

from __future__ import annotations

import numpy as np
import pytest
from cutting import tiny
from healing_tools import Case, Written, check_gradients, write_case

from condensec.healing import losses
from condensec.healing.training import differentiable_copy, prepare

B, S, D, H = 2, 5, 8, 2  # batch, length, width, heads


def _w(*shape: int, seed: int = 3) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) / 2).astype(np.float32)


def _i32(*rows: object) -> np.ndarray:
    return np.asarray(rows, np.int32)


MASK = _i32([1, 1, 1, 1, 0], [1, 1, 0, 0, 0])
COS, SIN = (f(np.outer(np.arange(16), [1.0, 0.3])).astype(np.float32) for f in (np.cos, np.sin))
WIDE_COS, WIDE_SIN = (
    f(np.outer(np.arange(16), 0.7 ** np.arange(8))).astype(np.float32) for f in (np.cos, np.sin)
)
HALF_COS, HALF_SIN = COS[:, :1].copy(), SIN[:, :1].copy()
X3, X4 = (B, S, D), (B, H, S, D // H)
M = "com.microsoft."
SEQ = (4, 3, 5)  # steps, batch, features
U = 6  # hidden units


def _cell(op: str, gates: int, directions: int = 1, label: str = "", **attributes: object) -> Case:
    inputs = (
        SEQ,
        _w(directions, gates * U, 5),
        _w(directions, gates * U, U, seed=4),
        _w(directions, 2 * gates * U),
    )
    return Case(op, inputs, {"hidden_size": U, **attributes}, label=label)


GQA = {"num_heads": 4, "kv_num_heads": 2}
GQA_IN = ((B, S, 64), (B, S, 32), (B, S, 32), None, None, _i32(S - 1, S - 1), np.asarray(S, np.int32))

CASES = [
    Case(M + "Attention", (X3, _w(D, 3 * D), _w(3 * D)), {"num_heads": H}),
    Case(M + "Attention", (X3, _w(D, 3 * D), _w(3 * D), MASK), {"num_heads": H}, label="mask"),
    Case(M + "Attention", (X3, _w(D, 3 * D), _w(3 * D), _i32(4, 2)), {"num_heads": H}, label="lengths"),
    Case(
        M + "Attention",
        (X3, _w(D, 3 * D), _w(3 * D), None, None, _w(1, H, S, S)),
        {"num_heads": H, "unidirectional": 1, "scale": 0.3},
        label="bias, causal",
    ),
    Case(
        M + "Attention",
        (X3, _w(D, 2 * D + 4), _w(2 * D + 4)),
        {"num_heads": H, "qkv_hidden_sizes": [D, D, 4]},
        label="narrow values",
    ),
    Case(M + "MultiHeadAttention", (X3, (B, 3, D), (B, 3, D), _w(3 * D)), {"num_heads": H}),
    Case(M + "MultiHeadAttention", (X3, X3, X3, None, MASK), {"num_heads": H, "scale": 0.5}, label="mask"),
    Case(M + "MultiHeadAttention", (X3, X3, X3), {"num_heads": H, "unidirectional": 1}, label="causal"),
    Case(
        M + "MultiHeadAttention", (X3, X3, (B, S, 4), None, None, _w(B, H, S, S)), {"num_heads": H},
        label="bias",
    ),
    Case(M + "GroupQueryAttention", GQA_IN, GQA, outputs=3),
    Case(M + "GroupQueryAttention", GQA_IN, {**GQA, "local_window_size": 2}, outputs=3, label="window"),
    Case(
        M + "GroupQueryAttention", (*GQA_IN, WIDE_COS, WIDE_SIN), {**GQA, "do_rotary": 1}, outputs=3,
        label="rotary",
    ),
    Case(
        M + "GroupQueryAttention",
        (*GQA_IN, WIDE_COS, WIDE_SIN),
        {**GQA, "do_rotary": 1, "rotary_interleaved": 1, "scale": 0.4},
        outputs=3,
        label="interleaved",
    ),
    Case(M + "RotaryEmbedding", (X4, np.asarray([3], np.int64), COS, SIN)),
    Case(M + "RotaryEmbedding", (X3, np.asarray([0], np.int64), COS, SIN), {"interleaved": 1}, label="flat"),
    Case(
        M + "RotaryEmbedding",
        (X4, np.asarray([[0, 1, 2, 3, 4], [4, 2, 2, 1, 7]], np.int64), HALF_COS, HALF_SIN),
        {"rotary_embedding_dim": 2, "num_heads": H},
        label="positions, a part",
    ),
    # the default domain's, by their own function bodies
    Case("Attention", (X4, X4, X4), opset=23),
    Case("Attention", (X4, X4, X4), {"is_causal": 1, "scale": 0.4}, opset=23, label="causal"),
    Case("Attention", ((B, 4, S, 4), X4, X4), opset=23, label="grouped"),
    Case("Attention", (X3, X3, X3), {"q_num_heads": H, "kv_num_heads": H}, opset=23, label="flat"),
    Case("Attention", (X4, X4, X4, _w(S, S)), {"softcap": 2.0}, opset=23, label="bias, softcap"),
    Case("RotaryEmbedding", (X4, COS, SIN, np.asarray([[0, 1, 2, 3, 4]] * B, np.int64)), opset=23),
    Case("RMSNormalization", ((2, 3, 8), _w(8)), opset=23),
    # matrix products
    Case(M + "FusedMatMul", ((2, 3, 4), (2, 3, 5)), {"transA": 1, "alpha": 0.5}),
    Case(M + "FusedMatMul", ((2, 3, 4), _w(5, 4)), {"transB": 1}, label="weight"),
    Case(M + "FusedGemm", ((3, 4), _w(5, 4), _w(5)), {"transB": 1, "alpha": 0.7, "activation": "Relu"}),
    Case(
        M + "FusedGemm",
        ((3, 4), _w(4, 5), _w(5)),
        {"activation": "LeakyRelu", "activation_alpha": 0.2},
        label="leaky",
    ),
    # recurrent
    _cell("LSTM", 4),
    _cell("LSTM", 4, 2, "both ways", direction="bidirectional"),
    _cell("LSTM", 4, 1, "backwards", direction="reverse"),
    Case(
        "LSTM",
        (SEQ, _w(1, 4 * U, 5), _w(1, 4 * U, U), None, None, (1, 3, U), (1, 3, U), _w(1, 3 * U)),
        {"hidden_size": U},
        label="states, peepholes",
    ),
    _cell("GRU", 3),
    _cell("GRU", 3, 2, "both ways", direction="bidirectional", linear_before_reset=1),
    Case("GRU", (SEQ, _w(1, 3 * U, 5), _w(1, 3 * U, U)), {"hidden_size": U}, label="no bias"),
    _cell("RNN", 1),
    _cell("RNN", 1, 2, "both ways", direction="bidirectional", activations=["Tanh", "Relu"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    folder = tmp_path_factory.mktemp("cases")
    return {case.id: write_case(case, folder) for case in CASES}


@pytest.fixture(scope="module")
def gradients(
    written: dict[str, Written], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, float]]:
    return check_gradients(list(written.values()), tmp_path_factory.mktemp("gradients"))


@pytest.mark.parametrize("name", [case.id for case in CASES])
def test_forward_is_the_same(name: str, written: dict[str, Written]) -> None:
    assert written[name].forward_error < 2e-5


@pytest.mark.parametrize("name", [case.id for case in CASES])
def test_gradient_is_right(name: str, gradients: dict[str, dict[str, float]]) -> None:
    assert "error" not in gradients[name], gradients[name]
    assert gradients[name], "nothing was compared"
    assert max(gradients[name].values()) < 0.02, gradients[name]


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (
            Case("LSTM", ((200, 1, 2), _w(1, 8, 2), _w(1, 8, 2)), {"hidden_size": 2}, label="long"),
            "over 200 steps, more than 128",
        ),
        (_cell("LSTM", 4, clip=1.0, label="clip"), "clip or input_forget"),
        (_cell("RNN", 1, activations=["Affine"], activation_alpha=[1.0], label="odd"), "activation Affine"),
        (
            Case(
                "GRU",
                (SEQ, _w(1, 18, 5), _w(1, 18, U), None, _i32(4, 2, 3)),
                {"hidden_size": U},
                label="lengths",
            ),
            "different lengths",
        ),
        (
            Case(M + "MultiHeadAttention", (X3, (B, H, 3, 4), (B, H, 3, 4)), {"num_heads": H}, label="4-D"),
            "packed inputs",
        ),
    ],
    ids=lambda value: value.id if isinstance(value, Case) else "",
)
def test_what_is_not_spelled_out_says_why(case: Case, reason: str) -> None:
    model, feeds = case.model()
    _, _, barriers = differentiable_copy(model, feeds)
    assert len(barriers) == 1
    assert reason in next(iter(barriers.values()))


def test_weights_stored_as_integers_are_named() -> None:
    """A weight behind DequantizeLinear isn't in the file as floats: the result says that it stays."""
    rng = np.random.default_rng(0)
    model = tiny(
        "w = DequantizeLinear(q, s)\n h = MatMul(x, w)\n y = MatMul(h, v)",
        x=["N", 6],
        weights={"q": rng.integers(-9, 9, (6, 5)).astype(np.int8), "s": np.float32(0.1), "v": (5, 3)},
        opset=13,
    )
    feeds = {"x": rng.standard_normal((4, 6)).astype(np.float32)}
    answers = {"y": np.ones((4, 3), np.float32)}
    found = prepare(model, feeds, lambda g, b: losses.choose(g, answers, None, None, 1.0), None)
    assert list(found.weights) == ["v"]
    assert [name for name, _ in found.frozen] == ["q"]
    assert "int8" in found.frozen[0][1]
    assert found.trained_share == pytest.approx(15 / 45)
