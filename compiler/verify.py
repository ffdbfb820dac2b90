"""The masked-equivalence oracle: proof of each cut.

Take the original model, zero exactly the parameter slices that the plan removes (`condensec.masked`), and run
it beside the cut one. A wrong index shows at once.

The oracle is independent of the slicer: it is built from the plan and the original file alone, and imports
nothing from ``condensec.passes``.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from condensec.comparable import check_repeats, unrunnable
from condensec.errors import PostconditionError
from condensec.masked import masked
from condensec.plan import Plan
from condensec.runner import Session
from condensec.unrounded import unrounded

Array = npt.NDArray[Any]

__all__ = ["TOLERANCE", "Proof", "check", "compare", "masked"]

# Two orders of the same fp32 sums differ by rounding; a wrong index differs by the size of the activations.
TOLERANCE = 1e-4
# A model that amplifies rounding (half precision, quantized) is allowed so many times its own noise...
NOISE_FACTOR = 20.0
# ...but never more than this.
LIMIT = 0.03
# Into these a difference goes large and comes out small, or not at all: what goes in is compared as well.
_SQUASHING = frozenset(
    ("ArgMax", "ArgMin", "Cast", "Clip", "HardSigmoid", "Identity", "Sigmoid", "Softmax", "Tanh", "TopK")
)


@dataclass(frozen=True)
class Proof:
    """What the oracle found.

    Attributes:
        exact_groups: number of cut groups that no norm or softmax reduces over.
        approximate_groups: number of cut groups that one does.
        max_abs_error: largest difference of any output element.
        scale: largest magnitude of any output element of the reference.
        relative_error: the worst output's error over its scale.
        samples: number of samples compared.
        tolerance: the largest relative error that passes.
        unrounded: the errors are those of both models without the rounding of quantized activations
            (`condensec.unrounded`): with it, a last bit had become a step of the quantization.
    """

    exact_groups: int
    approximate_groups: int
    max_abs_error: float
    scale: float
    relative_error: float
    samples: int
    tolerance: float = TOLERANCE
    unrounded: bool = False

    @property
    def passed(self) -> bool:
        """Whether the cut is right."""
        return bool(self.relative_error <= self.tolerance)


def check(
    original: ir.Model, plan: Plan, pruned: ir.Model, feeds: Mapping[str, Array], *, threads: int = 1
) -> Proof:
    """Compare a cut model with the masked original.

    Args:
        original: the uncut model, as loaded from its file.
        plan: what was cut.
        pruned: the cut model, not healed.
        feeds: arrays by input name, for one call.
        threads: threads of each session.

    Raises:
        PostconditionError: the plan names something the original hasn't, or the cut model doesn't run.
        ModelError: the original doesn't run, or gives something else each time.
    """
    mask = masked(original, plan)
    proof = _held(mask, plan, pruned, feeds, threads)
    if not proof.passed:
        smooth = unrounded(mask), unrounded(pruned)
        if smooth[0] is not None and smooth[1] is not None:
            proof = replace(_held(smooth[0], plan, smooth[1], feeds, threads), unrounded=True)
    if not proof.passed:
        check_repeats(original, feeds, threads=threads)
    return proof


def _held(mask: ir.Model, plan: Plan, pruned: ir.Model, feeds: Mapping[str, Array], threads: int) -> Proof:
    """Run both models and compare; where they differ a little, ask what rounding alone does."""
    views = _before_squashing(pruned)
    names = [o.name or "" for o in pruned.graph.outputs] + [v for v in views.values() if v not in views]
    reference = Session(mask, threads=threads, optimize=False, extra_outputs=names)
    cut = Session(pruned, threads=threads, optimize=False, extra_outputs=names)
    try:
        expected = reference.run(feeds, names)
    except PostconditionError as error:
        raise unrunnable(error) from error
    found = cut.run(feeds, names)
    squashed = {o for o, v in views.items() if found[v].shape == expected[v].shape}
    for view in set(views.values()) - {views[o] for o in squashed} - set(views):
        del expected[view]  # a look into the graph, no promise of the model
    samples = max((len(a) for a in feeds.values() if a.ndim), default=1)
    proof = compare(plan, expected, found, samples=samples, squashed=squashed)
    if TOLERANCE < proof.relative_error <= LIMIT:
        noise = _noise(plan, mask, reference, expected, feeds, threads)
        proof = replace(proof, tolerance=min(LIMIT, max(TOLERANCE, NOISE_FACTOR * noise)))
    return proof


def _before_squashing(model: ir.Model) -> dict[str, str]:
    """What outputs are before a sigmoid or softmax presses differences out of them: output -> that value."""
    found: dict[str, str] = {}
    for output in model.graph.outputs:
        value, node = output, output.producer()
        while node is not None and node.op_type in _SQUASHING and node.inputs[0] is not None:
            value, node = node.inputs[0], node.inputs[0].producer()
        if value is not output and node is not None and value.name:
            found[output.name or ""] = value.name
    return found


def _noise(
    plan: Plan,
    mask: ir.Model,
    reference: Session,
    expected: Mapping[str, Array],
    feeds: Mapping[str, Array],
    threads: int,
) -> float:
    """What rounding alone does to the reference: its inputs moved by their last bits, its sums reordered."""
    rng = np.random.default_rng(0)
    moved = {
        name: (a * (1 + 2 * np.finfo(a.dtype).eps * rng.standard_normal(a.shape))).astype(a.dtype)
        if a.dtype.kind == "f"
        else a
        for name, a in feeds.items()
    }
    names = list(expected)
    optimized = Session(mask, threads=threads, optimize=True, extra_outputs=names)
    runs = (reference.run(moved, names), optimized.run(feeds, names))
    return max(compare(plan, expected, run, samples=1).relative_error for run in runs)


def compare(
    plan: Plan,
    expected: Mapping[str, Array],
    found: Mapping[str, Array],
    *,
    samples: int,
    squashed: Set[str] = frozenset(),
) -> Proof:
    """Build the proof from the outputs of both models.

    Args:
        plan: what was cut.
        expected: outputs of the masked original.
        found: outputs of the cut model.
        samples: how many samples they are of.
        squashed: outputs between -1 and 1 whose inputs are compared too: an error counts as it is.

    Raises:
        PostconditionError: an output is missing or has another shape.
    """
    worst = scale = absolute = 0.0
    for name, reference in expected.items():
        other = found.get(name)
        if other is None or other.shape != reference.shape:
            shape = None if other is None else other.shape
            raise PostconditionError(
                f"output '{name}' has shape {shape} after the cut, {reference.shape} before", node=name
            )
        if reference.dtype.kind not in "fc":
            continue  # ids and counts follow from scores that are compared, and may tie
        a, b = reference.astype(np.float64), other.astype(np.float64)
        size = float(np.abs(a).max(initial=1.0 if name in squashed else 0.0))
        error = (
            float(np.abs(a - b).max(initial=0.0))
            if np.isfinite(b).all() or not np.isfinite(a).all()
            else np.inf
        )
        error = error if np.isfinite(error) else np.inf
        absolute, scale = max(absolute, error), max(scale, size)
        worst = max(worst, error / size if size > 0 else error)
    cut = [g for g in plan.groups if len(g.kept) < g.size]
    exact = sum(g.exact for g in cut)
    return Proof(exact, len(cut) - exact, absolute, scale, worst, samples)
