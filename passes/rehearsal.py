"""A rehearsal of the cut, without weights: which nodes' sizes couldn't follow?

The axis algebra decides what may be cut; whether shape arithmetic can follow is known only when it's
rewritten. So every rewrite is tried once, on a copy, with half of every group. A node that fails is frozen
with the reason, at analysis time, instead of an error at the end of a long run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from condensec.errors import CondensecError
from condensec.passes.context import AttributeRewrite
from condensec.passes.resize import Resizer

if TYPE_CHECKING:
    from condensec.passes.groups import Analysis


def blocked(analysis: Analysis) -> list[tuple[ir.Node, str]]:
    """Nodes whose sizes can't follow a cut of half of every group, with reasons."""
    if not analysis.groups:
        return []
    kept = analysis.kept({g.id: np.arange(g.share(0.5)) for g in analysis.groups})
    derived = analysis.world.derived
    found: list[tuple[ir.Node, str]] = []
    resizer: Resizer | None = None
    nodes: dict[str | None, ir.Node] = {}
    for rewrite in analysis.context.rewrites:
        node = rewrite.node
        try:
            if isinstance(rewrite, AttributeRewrite):
                rewrite.new(kept)
                continue
            source = node.inputs[rewrite.index]
            if source is None or source.name not in derived:
                old = analysis.world.known(source)
                if old is not None:
                    rewrite.new(kept, old)
                continue
            if resizer is None:
                copy = analysis.model.clone()
                nodes = {n.name: n for n in copy.graph}
                resizer = Resizer(analysis, kept, copy)
            resizer.rewrite(nodes[node.name], rewrite.index, lambda old, new=rewrite.new: new(kept, old))  # type: ignore[misc]
        except CondensecError as error:
            found.append((node, error.message))
        except Exception as error:  # a rewrite that can't be computed is as good as one that can't be made
            reason = (
                f"sizes of {node.op_type} '{node.name}' can't follow a cut: {error or type(error).__name__}"
            )
            found.append((node, reason))
    return found
