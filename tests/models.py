"""Small real ONNX models for the tests: seeded weights, every batch dynamic, nothing trained.

Each builder returns a checked `onnx.ModelProto` (opset 17, IR 8) in the shape that exporters really
write: BatchNormalization with statistics that are not the identity, biases that are not zero, names one
can read in an error message. Image models take `input` [N, 3, 16, 16] and give `logits` [N, classes];
the transformer takes `input_ids` and `attention_mask` [N, S] and gives `logits` [N, classes].

    from models import residual_cnn, random_feeds, save

`as_constant_nodes` turns the initializers of any of them into Constant nodes, `with_batch` fixes the
batch, `random_feeds` makes seeded inputs, and `save_samples` writes an .npz with labels that the model
itself gives, so that its accuracy on it is exactly 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from graph_builder import Builder
from model_tools import (
    IMAGE,
    VOCABULARY,
    as_constant_nodes,
    random_feeds,
    run,
    save,
    save_samples,
    with_batch,
)
from onnx import TensorProto

__all__ = [
    "BUILDERS", "IMAGE", "VOCABULARY", "as_constant_nodes", "concat_net", "depthwise_se_cnn", "grouped_cnn",
    "mlp", "option_a_cnn", "random_feeds", "residual_cnn", "run", "save", "save_samples", "split_net",
    "transformer_encoder", "with_batch",
]  # fmt: skip


def mlp(
    *, features: int = 16, hidden: Sequence[int] = (32, 24), classes: int = 10, seed: int = 0
) -> onnx.ModelProto:
    """`input` [N, features]; Gemm + Relu, then MatMul + Add + Relu for the others, then Gemm."""
    b = Builder(seed)
    x, width = b.input("input", ["N", features]), features
    for i, size in enumerate(hidden):
        layer = b.gemm if i == 0 else b.linear
        x, width = b.op("Relu", f"relu{i}", layer(f"fc{i}", x, width, size)), size
    b.gemm("fc", x, width, classes, "logits")
    return b.build("mlp", classes)


def residual_cnn(*, width: int = 16, classes: int = 10, seed: int = 0) -> onnx.ModelProto:
    """Stem, a block with an identity shortcut, a block of stride 2 with a 1x1 projection, head."""
    b = Builder(seed)
    x = b.conv_bn_relu("stem", b.input("input", ["N", *IMAGE]), IMAGE[0], width)

    y = b.conv_bn_relu("block1.a", x, width, width)
    y = b.bn("block1.b.bn", b.conv("block1.b.conv", y, width, width), width)
    x = b.op("Relu", "block1.relu", b.op("Add", "block1.add", y, x))

    wide = 2 * width
    y = b.conv_bn_relu("block2.a", x, width, wide, stride=2)
    y = b.bn("block2.b.bn", b.conv("block2.b.conv", y, wide, wide), wide)
    s = b.bn("block2.shortcut.bn", b.conv("block2.shortcut.conv", x, width, wide, 1, stride=2), wide)
    x = b.op("Relu", "block2.relu", b.op("Add", "block2.add", y, s))
    b.head(x, wide, classes)
    return b.build("residual_cnn", classes)


def option_a_cnn(*, width: int = 16, classes: int = 10, seed: int = 0) -> onnx.ModelProto:
    """The CIFAR ResNet's parameter-free shortcut: Slice every second pixel, Pad with zero channels."""
    b = Builder(seed)
    x = b.conv_bn_relu("stem", b.input("input", ["N", *IMAGE]), IMAGE[0], width)
    wide = 2 * width
    y = b.conv_bn_relu("block.a", x, width, wide, stride=2)
    y = b.bn("block.b.bn", b.conv("block.b.conv", y, wide, wide), wide)
    s = b.op(
        "Slice", "block.slice", x,
        b.ints("slice.starts", 0, 0), b.ints("slice.ends", 2**31 - 1, 2**31 - 1),
        b.ints("slice.axes", 2, 3), b.ints("slice.steps", 2, 2),
    )  # fmt: skip
    s = b.op("Pad", "block.pad", s, b.ints("pad.pads", 0, width // 2, 0, 0, 0, width - width // 2, 0, 0))
    x = b.op("Relu", "block.relu", b.op("Add", "block.add", y, s))
    b.head(x, wide, classes)
    return b.build("option_a_cnn", classes)


def depthwise_se_cnn(*, width: int = 16, classes: int = 10, seed: int = 0) -> onnx.ModelProto:
    """MobileNetV3: two inverted residuals (expand, depthwise, squeeze-excite, project), HardSwish."""
    b = Builder(seed)
    x = b.conv("stem.conv", b.input("input", ["N", *IMAGE]), IMAGE[0], width, stride=2)
    x = b.op("HardSwish", "stem.act", b.bn("stem.bn", x, width))
    for i in (1, 2):
        x = _inverted_residual(b, f"block{i}", x, width, 3 * width)
    b.head(x, width, classes)
    return b.build("depthwise_se_cnn", classes)


def _inverted_residual(b: Builder, name: str, x: str, width: int, inner: int) -> str:
    y = b.bn(f"{name}.expand.bn", b.conv(f"{name}.expand.conv", x, width, inner, 1), inner)
    y = b.op("HardSwish", f"{name}.expand.act", y)
    y = b.bn(f"{name}.dw.bn", b.conv(f"{name}.dw.conv", y, inner, inner, 3, group=inner), inner)
    y = b.op("HardSwish", f"{name}.dw.act", y)
    squeezed = inner // 4
    s = b.conv(
        f"{name}.se.reduce", b.op("GlobalAveragePool", f"{name}.se.pool", y), inner, squeezed, 1, bias=True
    )
    s = b.conv(f"{name}.se.expand", b.op("Relu", f"{name}.se.relu", s), squeezed, inner, 1, bias=True)
    y = b.op("Mul", f"{name}.se.mul", y, b.op("HardSigmoid", f"{name}.se.gate", s, alpha=1 / 6, beta=0.5))
    y = b.bn(f"{name}.project.bn", b.conv(f"{name}.project.conv", y, inner, width, 1), width)
    return b.op("Add", f"{name}.add", x, y)


def grouped_cnn(*, width: int = 16, groups: int = 4, classes: int = 10, seed: int = 0) -> onnx.ModelProto:
    """ResNeXt: 1x1, grouped 3x3, 1x1 around an identity shortcut."""
    b = Builder(seed)
    x = b.conv_bn_relu("stem", b.input("input", ["N", *IMAGE]), IMAGE[0], width, stride=2)
    inner = 2 * width
    y = b.conv_bn_relu("block.a", x, width, inner, 1)
    y = b.conv_bn_relu("block.grouped", y, inner, inner, 3, group=groups)
    y = b.bn("block.c.bn", b.conv("block.c.conv", y, inner, width, 1), width)
    x = b.op("Relu", "block.relu", b.op("Add", "block.add", y, x))
    b.head(x, width, classes)
    return b.build("grouped_cnn", classes)


def concat_net(*, width: int = 16, classes: int = 10, seed: int = 0) -> onnx.ModelProto:
    """DenseNet and Inception: two branches of different widths, Concat with the input kept, norm after it."""
    b = Builder(seed)
    x = b.conv_bn_relu("stem", b.input("input", ["N", *IMAGE]), IMAGE[0], width)
    left = b.conv_bn_relu("left", x, width, width, 3)
    right = b.conv_bn_relu("right", x, width, width // 2, 1)
    total = width + width + width // 2
    x = b.op("Concat", "concat", x, left, right, axis=1)
    x = b.op("Relu", "relu", b.bn("bn", x, total))
    x = b.conv_bn_relu("mix", x, total, width, 1, stride=2)
    b.head(x, width, classes)
    return b.build("concat_net", classes)


def split_net(*, width: int = 16, classes: int = 10, seed: int = 0) -> onnx.ModelProto:
    """A gated unit (even Split, a * sigmoid(b)), then an uneven Split, one part convolved, Concat."""
    b = Builder(seed)
    x = b.conv_bn_relu("stem", b.input("input", ["N", *IMAGE]), IMAGE[0], width, stride=2)
    y = b.conv("gate.conv", x, width, 2 * width, 1, bias=True)
    b.op("Split", "gate.split", y, b.ints("gate.sizes", width, width), outputs=["gate.a", "gate.b"], axis=1)
    y = b.op("Mul", "gate.mul", "gate.a", b.op("Sigmoid", "gate.sigmoid", "gate.b"))
    quarter = width // 4
    y = b.conv_bn_relu("mid", y, width, width, 3)
    sizes = b.ints("part.sizes", quarter, width - quarter)
    b.op("Split", "part.split", y, sizes, outputs=["part.a", "part.b"], axis=1)
    y = b.op(
        "Concat", "part.concat", b.conv_bn_relu("part.conv", "part.a", quarter, quarter), "part.b", axis=1
    )
    x = b.conv_bn_relu("mix", y, width, width, 1)
    b.head(x, width, classes)
    return b.build("split_net", classes)


def transformer_encoder(
    *, layers: int = 2, hidden: int = 32, heads: int = 4, ffn: int = 64, classes: int = 10, seed: int = 0,
    shape_arithmetic: bool = False, decomposed_norm: bool = False,
) -> onnx.ModelProto:  # fmt: skip
    """BERT, post-norm, as PyTorch exports it: attention in pieces, additive mask, Gelu through Erf.

    Args:
        layers: number of encoder layers.
        hidden: hidden size, a multiple of `heads`.
        heads: attention heads.
        ffn: neurons of the feed-forward part.
        classes: width of `logits`, a Linear over the first token.
        seed: of the weights.
        shape_arithmetic: compute the shapes of the Reshapes from Shape, Gather and Concat (a dynamic
            export) instead of the constants [0, 0, heads, dim] and [0, 0, hidden].
        decomposed_norm: LayerNorm as ReduceMean, Sub, Pow, ... (opset 16 and before) instead of the op.
    """
    b = Builder(seed)
    ids = b.input("input_ids", ["N", "S"], TensorProto.INT64)
    mask = b.input("attention_mask", ["N", "S"], TensorProto.INT64)
    x = b.op("Gather", "embed", b.normal("embed.weight", (VOCABULARY, hidden), 1.0), ids, axis=0)
    x = _layer_norm(b, "embed.norm", x, hidden, decomposed_norm)

    kept = b.op(
        "Cast", "mask.cast", b.op("Unsqueeze", "mask.unsqueeze", mask, b.ints("mask.axes", 1, 2)), to=1
    )
    blocked = b.op("Sub", "mask.sub", b.const("one", np.float32(1)), kept)
    bias = b.op("Mul", "mask.mul", blocked, b.const("minus_big", np.float32(-1e4)))
    for i in range(layers):
        name = f"layer{i}"
        y = _attention(b, f"{name}.attention", x, bias, hidden, heads, shape_arithmetic)
        x = _layer_norm(b, f"{name}.norm1", b.op("Add", f"{name}.add1", y, x), hidden, decomposed_norm)
        y = _gelu(b, f"{name}.gelu", b.linear(f"{name}.ffn1", x, hidden, ffn))
        y = b.linear(f"{name}.ffn2", y, ffn, hidden)
        x = _layer_norm(b, f"{name}.norm2", b.op("Add", f"{name}.add2", y, x), hidden, decomposed_norm)
    first = b.op("Gather", "first", x, b.const("zero", np.int64(0)), axis=1)
    b.gemm("fc", first, hidden, classes, "logits")
    return b.build("transformer_encoder", classes)


def _attention(b: Builder, name: str, x: str, bias: str, hidden: int, heads: int, arithmetic: bool) -> str:
    dim = hidden // heads
    parts = {}
    for part, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        y = b.linear(f"{name}.{part}", x, hidden, hidden)
        y = b.op(
            "Reshape", f"{name}.{part}.reshape", y, _shape(b, f"{name}.{part}", y, arithmetic, heads, dim)
        )
        parts[part] = b.op("Transpose", f"{name}.{part}.transpose", y, perm=perm)
    scores = b.op("MatMul", f"{name}.scores", parts["q"], parts["k"])
    scores = b.op("Div", f"{name}.scale", scores, b.const(f"{name}.sqrt_dim", np.float32(dim**0.5)))
    weights = b.op("Softmax", f"{name}.softmax", b.op("Add", f"{name}.mask", scores, bias), axis=-1)
    y = b.op(
        "Transpose",
        f"{name}.merge",
        b.op("MatMul", f"{name}.context", weights, parts["v"]),
        perm=[0, 2, 1, 3],
    )
    y = b.op("Reshape", f"{name}.merge.reshape", y, _shape(b, f"{name}.merge", y, arithmetic, hidden))
    return b.linear(f"{name}.out", y, hidden, hidden)


def _shape(b: Builder, name: str, x: str, arithmetic: bool, *last: int) -> str:
    """The target of a Reshape that keeps the first two axes of `x`: a constant, or computed from `x`."""
    if not arithmetic:
        return b.ints(f"{name}.shape", 0, 0, *last)
    dims = b.op("Shape", f"{name}.dims", x)
    axes = b.ints(f"{name}.axis0", 0)
    pieces = []
    for i in (0, 1):
        one = b.op("Gather", f"{name}.dim{i}", dims, b.const(f"{name}.index{i}", np.int64(i)), axis=0)
        pieces.append(b.op("Unsqueeze", f"{name}.dim{i}.unsqueeze", one, axes))
    pieces += [b.ints(f"{name}.last{i}", size) for i, size in enumerate(last)]
    return b.op("Concat", f"{name}.shape", *pieces, axis=0)


def _layer_norm(b: Builder, name: str, x: str, hidden: int, decomposed: bool) -> str:
    scale = b.normal(f"{name}.scale", (hidden,), 0.2, 1.0)
    shift = b.normal(f"{name}.bias", (hidden,), 0.2)
    if not decomposed:
        return b.op("LayerNormalization", name, x, scale, shift, axis=-1, epsilon=1e-5)
    centred = b.op("Sub", f"{name}.sub", x, b.op("ReduceMean", f"{name}.mean", x, axes=[-1], keepdims=1))
    squared = b.op("Pow", f"{name}.pow", centred, b.const(f"{name}.two", np.float32(2)))
    variance = b.op("ReduceMean", f"{name}.variance", squared, axes=[-1], keepdims=1)
    stable = b.op("Add", f"{name}.stable", variance, b.const(f"{name}.epsilon", np.float32(1e-5)))
    y = b.op("Div", f"{name}.div", centred, b.op("Sqrt", f"{name}.sqrt", stable))
    return b.op("Add", f"{name}.shift", b.op("Mul", f"{name}.mul", y, scale), shift)


def _gelu(b: Builder, name: str, x: str) -> str:
    erf = b.op(
        "Erf", f"{name}.erf", b.op("Div", f"{name}.div", x, b.const(f"{name}.sqrt2", np.float32(2**0.5)))
    )
    y = b.op("Mul", f"{name}.mul", x, b.op("Add", f"{name}.add", erf, b.const(f"{name}.one", np.float32(1))))
    return b.op("Mul", f"{name}.half", y, b.const(f"{name}.point5", np.float32(0.5)))


BUILDERS = {
    f.__name__: f
    for f in (
        mlp, residual_cnn, option_a_cnn, depthwise_se_cnn, grouped_cnn, concat_net, split_net,
        transformer_encoder,
    )
}  # fmt: skip
"""Every builder by name, for `pytest.mark.parametrize`."""
