"""Every legalization computes what the operator does, and its gradient is the right one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from healing_tools import Case, Written, check_gradients, write_case

from condensec.healing.graph import Emitter, Node
from condensec.healing.legalize import legalizes, rules

X = (2, 4, 6, 5)
S = (2, 3, 8)
GROUPED = {"group": 2, "strides": [2, 1], "output_padding": [1, 0]}
NEAREST = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}


def _w(*shape: int, seed: int = 3, low: float | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape) if low is None else rng.uniform(low, low + 1, shape)
    return values.astype(np.float32)


def _i(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def _f(*values: float) -> np.ndarray:
    return np.asarray(values, np.float32)


PADS = _i(0, 0, 1, 2, 0, 0, 2, 1)


def _resize(label: str, scales: tuple[float, ...], **attributes: object) -> Case:
    return Case("Resize", ((1, 2, 5, 4), None, _f(*scales)), attributes, label=label)


CASES = [
    # activations
    *(Case(op, (X,)) for op in ("HardSwish", "Elu", "Selu", "Celu", "Softplus", "Softsign", "Mish")),
    *(Case(op, (X,)) for op in ("Sinh", "Cosh", "Asinh")),
    Case("HardSigmoid", (X,), {"alpha": 0.3, "beta": 0.4}),
    Case("Elu", (X,), {"alpha": 0.7}, label="alpha"),
    Case("Celu", (X,), {"alpha": 2.0}, label="alpha"),
    Case("ThresholdedRelu", (X,), {"alpha": 0.5}),
    Case("PRelu", (X, _w(4, 1, 1))),
    Case("Tan", (X,), low=-1.0),
    Case("Acosh", (X,), low=1.2),
    Case("Atanh", ((2, 5),), low=-0.9, label="half"),
    Case("Swish", (X,), {"alpha": 1.5}, opset=24),
    Case("Gelu", (X,)),
    Case("Gelu", (X,), {"approximate": "tanh"}, label="tanh"),
    Case("com.microsoft.Gelu", (X,)),
    Case("com.microsoft.FastGelu", (X, _w(5))),
    Case("com.microsoft.BiasGelu", (X, _w(5))),
    Case("com.microsoft.QuickGelu", (X,)),
    # elementwise
    Case("Sum", (X, (2, 4, 6, 5), (1, 4, 1, 1))),
    Case("Mean", (X, (1, 4, 1, 1), (5,))),
    Case("Sum", (X,), label="one"),
    Case("Pow", (X, _f(2.0).reshape(()))),
    Case("Pow", (X, _f(3.0).reshape(())), label="cube", low=0.5),
    Case("Pow", (X, (1, 4, 1, 1)), label="varying", low=0.5),
    Case("MatMul", (X, _w(5)), label="vector"),
    # normalization
    Case("BatchNormalization", (X, _w(4), _w(4), _w(4), _w(4, low=0.5)), {"epsilon": 1e-3}),
    Case("BatchNormalization", ((5, 4), _w(4), _w(4), _w(4), _w(4, low=0.5)), label="flat"),
    Case("InstanceNormalization", (X, _w(4), _w(4)), {"epsilon": 1e-2}),
    Case("GroupNormalization", (X, _w(4), _w(4)), {"num_groups": 2}, opset=21),
    Case("GroupNormalization", (X, _w(2), _w(2)), {"num_groups": 2}, opset=18, label="old"),
    Case("LayerNormalization", (X, _w(5), _w(5))),
    Case("LayerNormalization", (X, _w(6, 5)), {"axis": 2}, label="two axes, no bias"),
    Case("RMSNormalization", (X, _w(5)), opset=23),
    Case("SimplifiedLayerNormalization", (X, _w(5)), {"axis": -1}),
    Case("com.microsoft.SkipLayerNormalization", (S, S, _w(8), _w(8), _w(8)), {"epsilon": 1e-5}),
    Case("com.microsoft.SkipSimplifiedLayerNormalization", (S, S, _w(8)), {"epsilon": 1e-5}),
    Case("MeanVarianceNormalization", (X,)),
    Case("LpNormalization", (X,), {"axis": 1}),
    Case("LpNormalization", (X,), {"axis": 1, "p": 1}, label="l1", low=0.2),
    Case("LRN", ((2, 7, 4, 4),), {"size": 3, "alpha": 0.5, "beta": 0.75, "bias": 1.5}),
    # reductions
    Case("ReduceMax", (X, _i(1, 3))),
    Case("ReduceMax", (X, _i(2)), {"keepdims": 0}, label="flat"),
    Case("ReduceMin", (X, _i(3)), {"keepdims": 0}),
    Case("ReduceMax", (X,), {"axes": [2, 3], "keepdims": 1}, opset=13),
    *(Case(op, (X, _i(1, 2))) for op in ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceMean")),
    Case("ReduceLogSum", (X, _i(1)), low=0.5),
    Case("ReduceLogSumExp", (X, _i(1))),
    Case("GlobalMaxPool", (X,)),
    Case("CumSum", (X, np.asarray(2, np.int64))),
    Case("CumSum", (X, np.asarray(1, np.int64)), {"exclusive": 1, "reverse": 1}, label="both"),
    # movement
    Case("DepthToSpace", ((2, 8, 3, 3),), {"blocksize": 2}),
    Case("DepthToSpace", ((2, 8, 3, 3),), {"blocksize": 2, "mode": "CRD"}, label="CRD"),
    Case("SpaceToDepth", ((2, 3, 4, 6),), {"blocksize": 2}),
    *(Case("Pad", (X, PADS), {"mode": m}, label=m) for m in ("edge", "reflect", "constant")),
    Case("Pad", (X, _i(2, 1), None, _i(3)), {"mode": "wrap"}, opset=19, label="wrap"),
    # convolution
    Case("Conv", (X, _w(3, 4, 3, 3), _w(3)), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("Conv", (X, _w(3, 4, 2, 2)), {"auto_pad": "SAME_LOWER"}, label="lower"),
    Case("Conv", (X, _w(8, 2, 3, 3)), {"group": 2, "pads": [1, 0, 1, 2], "dilations": [1, 2]}, label="g"),
    Case("Conv", (X, _w(4, 1, 3, 3)), {"group": 4, "pads": [1, 1, 1, 1]}, label="depthwise"),
    Case("ConvTranspose", (X, _w(4, 3, 3, 3), _w(3)), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("ConvTranspose", (X, _w(4, 2, 2, 3)), GROUPED, label="g"),
    Case("ConvTranspose", (X, _w(4, 3, 3, 2)), {"dilations": [2, 1]}, label="dilated"),
    Case("ConvTranspose", (X, _w(4, 3, 4, 4)), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, label="same"),
    Case("ConvTranspose", (X, _w(4, 3, 4, 4)), {"output_shape": [12, 10], "strides": [2, 2]}, label="shape"),
    Case("ConvTranspose", (X, _w(4, 3, 2, 2)), {"pads": [2, 2, 2, 2]}, label="cropping"),
    Case("ConvTranspose", ((2, 3, 5), _w(3, 2, 3)), {"strides": [3]}, label="1d"),
    Case(
        "com.microsoft.FusedConv",
        (X, _w(3, 4, 3, 3), _w(3)),
        {"activation": "LeakyRelu", "activation_params": [0.2]},
    ),
    # pooling that is differentiable as it is
    Case("MaxPool", (X,), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("AveragePool", (X,), {"kernel_shape": [3, 2], "ceil_mode": 1, "strides": [2, 2]}),
    # resizing
    _resize("nearest", (1, 1, 2, 3), **NEAREST),
    _resize("nearest odd", (1, 1, 1.5, 0.5), mode="nearest"),
    _resize("linear", (1, 1, 2, 2), mode="linear"),
    _resize("linear corners", (1, 1, 2.5, 2), mode="linear", coordinate_transformation_mode="align_corners"),
    _resize("cubic", (1, 1, 2, 1.5), mode="cubic"),
    _resize("antialias", (1, 1, 0.5, 0.75), mode="linear", antialias=1),
    Case("Resize", ((1, 2, 5, 4), None, None, _i(1, 2, 9, 3)), {"mode": "linear"}, label="sizes"),
    Case("Upsample", ((1, 2, 3, 4), _f(1, 1, 2, 2)), {"mode": "nearest"}, opset=9),
    Case("Resize", ((1, 2, 3, 4), _f(1, 1, 2, 2)), {"mode": "linear"}, opset=10),
    # Einsum
    *(
        Case("Einsum", shapes, {"equation": equation}, label=equation)
        for equation, shapes in {
            "ij,jk->ik": ((3, 4), (4, 5)),
            "bhid,bhjd->bhij": ((2, 3, 4, 5), (2, 3, 6, 5)),
            "bij,bkj->bki": ((2, 3, 4), (2, 5, 4)),
            "...i,ij->...j": ((2, 3, 4), (4, 5)),
            "ijk->ki": ((2, 3, 4),),
            "ab,cd": ((2, 3), (4, 2)),
            "i,i->": ((4,), (4,)),
            "bi,ij,bj->b": ((2, 3), (3, 4), (2, 4)),
            "ab,bc,cd,de->ae": ((2, 3), (3, 4), (4, 2), (2, 5)),
        }.items()
    ),
    # older opsets
    Case("Softmax", ((2, 3, 4),), {"axis": 1}, opset=11, label="flattening"),
    Case("Clip", (X,), {"min": -0.5, "max": 0.7}, opset=7),
    Case("Slice", (X,), {"starts": [1, 0], "ends": [3, 4], "axes": [1, 2]}, opset=9),
    Case("Pad", (X,), {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "value": 0.5}, opset=9),
    Case("Squeeze", ((2, 1, 3),), {"axes": [1]}, opset=11),
    Case("ReduceSum", (X,), {"axes": [1], "keepdims": 0}, opset=11),
    Case("Split", (X,), {"axis": 1, "split": [1, 3]}, outputs=2, opset=11, label="one part unused"),
    Case("Dropout", (X,), {"ratio": 0.5}, opset=10),
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


def test_case_names_are_unique() -> None:
    assert len({case.id for case in CASES}) == len(CASES)


@pytest.mark.parametrize("name", [case.id for case in CASES])
def test_forward_is_the_same(name: str, written: dict[str, Written]) -> None:
    assert written[name].forward_error < 2e-5


@pytest.mark.parametrize("name", [case.id for case in CASES])
def test_gradient_is_right(name: str, gradients: dict[str, dict[str, float]]) -> None:
    assert "error" not in gradients[name], gradients[name]
    assert gradients[name], "nothing was compared"
    assert max(gradients[name].values()) < 0.02, gradients[name]


def test_wrong_gradient_is_noticed(tmp_path: Path) -> None:
    """Negative control: a rule with the right values and a wrong gradient fails the check."""
    rules()

    def cheat(node: Node, e: Emitter) -> None:
        # x - 2 (x with its gradient stopped): the value is -x, the gradient +1
        stopped = e.op("Sum", node.inputs[0])
        e.op("Sub", node.inputs[0], e.op("Mul", stopped, e.const(2.0)), out=node.outputs[0])

    from condensec.healing import legalize, trainable

    table = legalize.rules()
    kept = {op: table.get(op) for op in ("Neg", "Sum")}
    try:
        table["Neg"] = cheat
        table.pop("Sum")
        allowed = trainable.DIFFERENTIABLE
        trainable.DIFFERENTIABLE = allowed | {"Sum"}
        case = write_case(Case("Neg", (X,)), tmp_path)
    finally:
        trainable.DIFFERENTIABLE = allowed
        table.update({op: rule for op, rule in kept.items() if rule})
        if kept["Neg"] is None:
            table.pop("Neg")
    assert case.forward_error < 1e-6
    assert max(check_gradients([case], tmp_path)[case.id].values()) > 0.5


def test_wrong_value_is_noticed(tmp_path: Path) -> None:
    """Negative control: a rule that computes something else fails the forward check."""

    def wrong(node: Node, e: Emitter) -> None:
        e.op("Relu", node.inputs[0], out=node.outputs[0])

    table = rules()
    kept = table["HardSwish"]
    try:
        table["HardSwish"] = wrong
        assert write_case(Case("HardSwish", (X,)), tmp_path).forward_error > 0.01
    finally:
        table["HardSwish"] = kept


def test_two_rules_for_one_operator_are_refused() -> None:
    rules()
    with pytest.raises(ValueError, match="two legalizations for HardSwish"):
        legalizes("HardSwish")(lambda node, e: None)
