"""Einsum."""

from __future__ import annotations

import string

import onnx_ir as ir

from condensec.axes import Term
from condensec.passes.context import Context
from condensec.passes.rules import rule


@rule("Einsum")
def einsum(ctx: Context, node: ir.Node) -> None:
    """Axes with the same letter are the same axis; letters that the result hasn't are summed over."""
    values = [ctx.operand(node, i) for i in range(len(node.inputs))]
    lists, right = subscripts(
        node.attributes["equation"].as_string(), [len(ctx.shape(value)) for value in values]
    )
    letters: dict[str, Term | None] = {}
    sizes: dict[str, int] = {}
    for names, value in zip(lists, values, strict=True):
        for letter, term, size in zip(names, ctx.layout(value), ctx.shape(value), strict=True):
            if letter in letters and size > 1 and sizes[letter] > 1:
                ctx.tie(letters[letter], term)
                letters[letter] = None if term is None else letters[letter]
            elif letter not in letters or sizes[letter] == 1:
                letters[letter], sizes[letter] = term, size
    ctx.set(node.outputs[0], [letters[x] for x in right])
    for index, names in enumerate(lists):
        for axis, letter in enumerate(names):
            users = tuple(i for i, other in enumerate(lists) if letter in other)
            if letter not in right and len(users) == 1:
                ctx.reduces(node, index, axis)
            elif letter not in right:
                ctx.contracts(node, index, axis, users)
    if len(values) > 1:
        _cost(ctx, node, values, lists, right, letters, sizes)


def subscripts(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """Letters of every input and of the result, an ellipsis spelled out with letters of its own."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    unused = [c for c in string.ascii_letters if c not in equation]
    spelled = [rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=True) if "..." in t]
    longest = max(spelled, default=0)
    spread = "".join(unused[:longest])
    lists = []
    for term, rank in zip(terms, ranks, strict=True):
        count = rank - len(term.replace("...", ""))
        lists.append(term.replace("...", spread[longest - count :] if count else ""))
    if arrow:
        return lists, right.replace("...", spread)
    once = sorted(x for x in set("".join(lists)) - set(spread) if "".join(lists).count(x) == 1)
    return lists, spread + "".join(once)


def _cost(
    ctx: Context,
    node: ir.Node,
    values: list[ir.Value],
    lists: list[str],
    right: str,
    letters: dict[str, Term | None],
    sizes: dict[str, int],
) -> None:
    """With one weight among two operands, it's a linear layer; its letters are its inputs and outputs."""
    extra: dict[str, object] = {}
    weights = [i for i, v in enumerate(values) if ctx.is_constant(v)]
    if len(values) == 2 and len(weights) == 1:
        weight, data = weights[0], 1 - weights[0]
        summed = [x for x in lists[weight] if x not in right]
        made = [x for x in lists[weight] if x in right and x not in lists[data]]
        if len(summed) == 1:
            extra = {"inputs": letters[summed[0]], "mask": (data, lists[data].index(summed[0]))}
        if len(made) == 1:
            extra["outputs"] = letters[made[0]]
    ctx.cost(node, [letters[x] for x in sizes], [sizes[x] for x in sizes], **extra)
