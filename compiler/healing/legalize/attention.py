"""Fused attention: projections, scores, mask, softmax and sum spelled out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from condensec.healing.graph import Emitter, Node
from condensec.healing.legalize import NotLegal, legalizes
from condensec.healing.legalize.rotary import rotated

_BLOCKED = -1e9  # score of a pair that may not look at each other: exp of it is 0 in any precision


@dataclass(frozen=True)
class Heads:
    """Query, key and value as [batch, heads, length, dim].

    Attributes:
        q, k, v: names of the values.
        batch, heads, length, total: sizes; `total` is the length of keys and values.
        dim, value_dim: of a head.
    """

    q: str
    k: str
    v: str
    batch: int
    heads: int
    length: int
    total: int
    dim: int
    value_dim: int


def split_heads(x: str, batch: int, length: int, heads: int, dim: int, e: Emitter) -> str:
    """[batch, length, heads * dim] -> [batch, heads, length, dim]."""
    return e.op("Transpose", e.reshape(x, (batch, length, heads, dim)), perm=[0, 2, 1, 3])


def attended(h: Heads, scale: float, masks: list[str], e: Emitter, out: str) -> None:
    """softmax(scale q k^T + masks) v as [batch, length, heads * value_dim] (Vaswani et al. 2017)."""
    scores = e.op("MatMul", e.op("Mul", h.q, e.const(scale)), e.op("Transpose", h.k, perm=[0, 1, 3, 2]))
    for mask in masks:
        scores = e.op("Add", scores, mask)
    mixed = e.op("MatMul", e.op("Softmax", scores, axis=-1), h.v)
    joined = e.op("Transpose", mixed, perm=[0, 2, 1, 3])
    e.reshape(joined, (h.batch, h.length, h.heads * h.value_dim), out=out)


def causal(length: int, total: int, e: Emitter, window: int = -1) -> str:
    """[length, total]: 0 where a query may look, far below elsewhere; queries are the last of `total`."""
    ahead = np.arange(total)[None, :] - (np.arange(length)[:, None] + total - length)
    hidden = (ahead > 0) | ((ahead <= -window) if window > 0 else False)
    return e.const(np.where(hidden, _BLOCKED, 0.0))


def padding(mask: str, h: Heads, fill: float, e: Emitter) -> str:
    """Additive mask of an integer one: [batch, total], [batch, length, total], or lengths [batch].

    Raises:
        NotLegal: it has another shape.
    """
    shape = e.shape(mask)
    if shape == (h.batch, h.total):
        wide = (h.batch, 1, 1, h.total)
    elif shape == (h.batch, h.length, h.total):
        wide = (h.batch, 1, h.length, h.total)
    elif shape == (h.batch,):
        place = e.const(np.arange(h.total, dtype=np.float32).reshape(1, 1, 1, -1))
        length = e.reshape(e.op("Cast", mask, to=1), (h.batch, 1, 1, 1))
        inside = e.op("Cast", e.op("Less", place, length), to=1)
        return e.op("Mul", e.op("Sub", inside, e.const(1.0)), e.const(-fill))
    else:
        raise NotLegal(f"attention with a mask of shape {list(shape)}")
    seen = e.op("Cast", e.op("Greater", mask, e.const(0, np.int32)), to=1)
    return e.op("Mul", e.op("Sub", e.reshape(seen, wide), e.const(1.0)), e.const(-fill))


def _refuse(node: Node, positions: dict[int, str]) -> None:
    for position, what in positions.items():
        if node.input(position):
            raise NotLegal(f"{node.op.rpartition('.')[2]} with {what}")


@legalizes("com.microsoft.Attention")
def microsoft_attention(node: Node, e: Emitter) -> None:
    """Self-attention with its input projection: one matrix for query, key and value."""
    _refuse(node, {4: "past keys and values"})
    if node.attribute("do_rotary", 0) or (len(node.outputs) > 1 and node.outputs[1]):
        raise NotLegal("Attention with rotary embedding or present keys and values")
    x, weight = node.inputs[:2]
    batch, length, _ = e.shape(x)
    heads = int(node.attribute("num_heads"))
    third = e.shape(weight)[1] // 3
    sizes = list(node.attribute("qkv_hidden_sizes", []) or [third] * 3)
    projected = e.op("MatMul", x, weight)
    if node.input(2):
        projected = e.op("Add", projected, node.inputs[2])
    parts = [e.graph.fresh(part) for part in "qkv"]
    e.multi("Split", [projected, e.ints(sizes)], parts, axis=2)
    dims = [size // heads for size in sizes]
    q, k, v = (split_heads(p, batch, length, heads, d, e) for p, d in zip(parts, dims, strict=True))
    h = Heads(q, k, v, batch, heads, length, length, dims[0], dims[2])
    masks = [node.inputs[5]] if node.input(5) else []
    if node.input(3):
        masks.append(padding(node.inputs[3], h, node.attribute("mask_filter_value", -10000.0), e))
    if node.attribute("unidirectional", 0):
        masks.append(causal(length, length, e))
    attended(h, node.attribute("scale") or 1 / math.sqrt(h.dim), masks, e, node.outputs[0])


@legalizes("com.microsoft.MultiHeadAttention")
def multi_head_attention(node: Node, e: Emitter) -> None:
    """Attention behind separate projections; one bias for all three."""
    _refuse(node, {6: "past keys and values", 7: "past keys and values"})
    if any(node.outputs[1:]):
        raise NotLegal("MultiHeadAttention with present keys and values")
    if not node.input(1) or not node.input(2) or any(len(e.shape(n)) != 3 for n in node.inputs[:3]):
        raise NotLegal("MultiHeadAttention with packed inputs")
    batch, length, hidden = e.shape(node.inputs[0])
    total, wide = e.shape(node.inputs[1])[1], e.shape(node.inputs[2])[2]
    heads = int(node.attribute("num_heads"))
    given = list(node.inputs[:3])
    if node.input(3):
        parts = [e.graph.fresh("bias") for _ in given]
        e.multi("Split", [node.inputs[3], e.ints([hidden, hidden, wide])], parts, axis=0)
        given = [e.op("Add", x, b) for x, b in zip(given, parts, strict=True)]
    q = split_heads(given[0], batch, length, heads, hidden // heads, e)
    k = split_heads(given[1], batch, total, heads, hidden // heads, e)
    v = split_heads(given[2], batch, total, heads, wide // heads, e)
    h = Heads(q, k, v, batch, heads, length, total, hidden // heads, wide // heads)
    masks = [node.inputs[5]] if node.input(5) else []
    if node.input(4):
        masks.append(padding(node.inputs[4], h, node.attribute("mask_filter_value", -10000.0), e))
    if node.attribute("unidirectional", 0):
        masks.append(causal(length, total, e))
    attended(h, node.attribute("scale") or 1 / math.sqrt(h.dim), masks, e, node.outputs[0])


@legalizes("com.microsoft.GroupQueryAttention")
def group_query_attention(node: Node, e: Emitter) -> None:
    """Causal attention in which several query heads share a key head (Ainslie et al. 2023), from the start.

    Samples may be padded on the right: causal queries don't look there, and what padded places give isn't
    defined.
    """
    if not node.input(1) or not node.input(2):
        raise NotLegal("GroupQueryAttention with packed inputs")
    for position in (3, 4):
        if node.input(position) and 0 not in e.shape(node.inputs[position]):
            raise NotLegal("GroupQueryAttention with past keys and values")
    if node.attribute("softcap", 0.0) or node.attribute("smooth_softmax", 0) or any(node.inputs[10:]):
        raise NotLegal("GroupQueryAttention with a changed softmax")
    batch, length, hidden = e.shape(node.inputs[0])
    heads, few = int(node.attribute("num_heads")), int(node.attribute("kv_num_heads"))
    dim = hidden // heads
    q = split_heads(node.inputs[0], batch, length, heads, dim, e)
    k, v = (split_heads(name, batch, length, few, dim, e) for name in node.inputs[1:3])
    if node.attribute("do_rotary", 0):
        if node.input(9):
            raise NotLegal("GroupQueryAttention with positions of its own")
        cos, sin = (_first_rows(name, length, e) for name in node.inputs[7:9])
        interleaved = bool(node.attribute("rotary_interleaved", 0))
        q, k = (rotated(x, cos, sin, n, dim, interleaved, e) for x, n in ((q, heads), (k, few)))
    for i, value in ((1, k), (2, v)):
        if len(node.outputs) > i and node.outputs[i]:
            e.op("Identity", value, out=node.outputs[i])
    k, v = (_repeated(x, batch, few, heads, length, dim, e) for x in (k, v))
    h = Heads(q, k, v, batch, heads, length, length, dim, dim)
    window = int(node.attribute("local_window_size", -1))
    scale = node.attribute("scale") or 1 / math.sqrt(dim)
    attended(h, scale, [causal(length, length, e, window)], e, node.outputs[0])


def _first_rows(cache: str, length: int, e: Emitter) -> str:
    """[1, 1, length, dim / 2] of a table of cosines or sines."""
    rows = e.op("Slice", cache, e.ints([0]), e.ints([length]), e.ints([0]))
    return e.reshape(rows, (1, 1, length, e.shape(cache)[1]))


def _repeated(x: str, batch: int, few: int, heads: int, length: int, dim: int, e: Emitter) -> str:
    """Every key head once for each of its query heads."""
    if few == heads:
        return x
    grouped = e.reshape(x, (batch, few, 1, length, dim))
    wide = e.op("Expand", grouped, e.ints([batch, few, heads // few, length, dim]))
    return e.reshape(wide, (batch, heads, length, dim))
