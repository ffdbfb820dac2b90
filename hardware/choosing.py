"""Choosing a precision: recipes are written, compared with fp32, timed, and the best one is kept.

For each way the dialect has to write a precision:

1. ranges of activations by each method of calibration, and the truest graph of them;
2. if it doesn't keep the guard: the layers that lose most, measured one by one, go back to fp32: one, two,
   four, ... of them until the guard is kept, then as few as that takes (halving). How many graphs are
   tried follows from the model's size, never from the clock, so that the result is always the same;
3. where the target can be measured: the time against fp32, and again with doubtful layers (depthwise
   convolutions) in fp32; kept is what is fastest, and only if the interval of the ratio is below 1. Where
   another x86 level can only be stood in for, "auto" takes what is faster even with the target's handicap;
4. where int8 is faster than the caller needs, layers that lose most go back to fp32 as long as it stays fast
   enough: what isn't needed for the latency is given back as accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

from condensec.errors import CondensecError, PostconditionError
from condensec.hardware import bench
from condensec.hardware.calibration import METHODS
from condensec.hardware.emission import CHECKED, Arrays, Fidelity, Recipe, Request, check
from condensec.hardware.int8 import costly_layers, source_macs, worst_layers
from condensec.hardware.protocol import Protocol
from condensec.hardware.stand_in import int8_penalty
from condensec.hardware.work import times_within

FILE = "model.onnx"
Accept = Callable[[Path], bool]
QUICK = Protocol(pairs=30, min_seconds=0.5, max_seconds=10.0)
_AGREEMENT = 0.98  # for "auto" without a guard of the caller's
_COSINE = 0.99
_CLEARLY = 0.95  # of the error of minmax: below it another method is worth the difference
_SEARCHES = (3, 8)  # graphs written in search of the layers to leave in fp32, at least and at most
_SEARCH_MACS = 3e12  # multiply-accumulates of all of them together, some two minutes
_RUNS = 3  # of every sample a graph is checked on: with rewriting, without, and by the guard


@dataclass(frozen=True)
class Candidate:
    """A graph written but not published.

    Attributes:
        path: the file.
        recipe: how it was written.
        notes: of the dialect.
        fidelity: against the fp32 model.
        reasons: layers of an int8 graph that stay fp32, and why.
    """

    path: Path
    recipe: Recipe
    notes: tuple[str, ...]
    fidelity: Fidelity
    reasons: Mapping[str, str] = field(default_factory=dict)


def searched(macs: int) -> int:
    """How many graphs are tried in search of layers to leave in fp32, by multiply-accumulates of a sample."""
    return times_within(_SEARCH_MACS, macs * CHECKED * _RUNS, *_SEARCHES)


class Search:
    """Writes candidates for a request and keeps the best.

    Args:
        dialect: module of ``hardware/emit``.
        request: what is wanted.
        work: folder for drafts.
        expected: outputs of the fp32 model.
        accept: the caller's guard.
    """

    def __init__(
        self, dialect: ModuleType, request: Request, work: Path, expected: Arrays, accept: Accept | None
    ) -> None:
        self.notes: list[str] = []
        self.tried: dict[str, float] = {}
        self._dialect, self._request, self._work = dialect, request, work
        self._expected, self._accept = expected, accept
        self._written = 0
        self._method = "" if request.calibrate == "auto" else request.calibrate

    def base(self) -> Candidate:
        """The fp32 graph; without the dialect's rewrites where they change or slow it.

        Raises:
            PostconditionError: even the plain graph isn't the model.
        """
        try:
            base = self._write(Recipe("fp32"))
        except PostconditionError as error:
            base = self._write(Recipe("fp32", plain=True))
            self.notes.append(f"the model was written as it is, since otherwise: {error.message}")
            return base
        if self._measured and base.notes:
            plain = self._write(Recipe("fp32", plain=True))
            if self._time(plain, base).verdict == "slower":
                self.notes.append("written as it is: rewriting made it slower here")
                return plain
        return base

    def best(self, base: Candidate, precisions: Sequence[str], *, guarded: bool) -> Candidate:
        """The candidate to keep, of these precisions; ``notes`` says why others weren't taken.

        Args:
            base: the fp32 graph.
            precisions: to try, in order; where nothing can be measured the first that passes is taken.
            guarded: whether a candidate has to keep the guard (the default one if the caller has none).
        """
        target = self._request.target
        best, best_ratio = base, 1.0
        for precision in precisions:
            if precision not in target.precisions:
                why = target.notes[0] if target.notes else f"it takes {', '.join(target.precisions)}"
                self.notes.append(f"{precision} isn't offered for {target.name}: {why}")
                continue
            for variant in self._variants(precision):
                for one in self._candidates(precision, variant, guarded):
                    if not self._measured:
                        if self._slower_there(base, one):
                            continue
                        return one
                    ratio = self._faster(base, one)
                    if ratio is not None and ratio < best_ratio:
                        best, best_ratio = one, ratio
        return best

    def _slower_there(self, base: Candidate, one: Candidate) -> bool:
        """Whether int8 is likely slower than fp32 on a target that this machine can only stand in for."""
        request = self._request
        if not request.choosy or one.recipe.precision != "int8":
            return False
        penalty = request.once(
            "int8 penalty", lambda: int8_penalty(request.target, base.path, request.samples)
        )
        if penalty is None:
            return False
        ratio = self._time(base, one).ratio
        if ratio * penalty < 1:
            return False
        name, there = request.target.name, ratio * penalty
        why = f"{ratio:.2f}x the time of fp32 here, which comes to {there:.2f}x on {name} (modelled)"
        self._left_out(one.recipe, why)
        return True

    def truer(self, one: Candidate, fast_enough: Accept) -> Candidate:
        """An int8 graph with as many layers in fp32 as the latency asked for allows.

        Those come first that lose most for the time they save. Squared errors of single layers about add up,
        so this is the greedy answer to a knapsack.
        """
        if one.recipe.precision != "int8" or not fast_enough(one.path):
            return one
        layers = [layer.node for layer in costly_layers(self._request, one.recipe)]
        best, fast, slow = one, 0, len(layers)
        for _ in range(searched(source_macs(self._request))):
            count = (fast + slow) // 2
            if count == fast:
                break
            found = self._in_fp32(one, layers[:count], "there was time left for it")
            if not fast_enough(found.path):
                slow = count
                continue
            fast = count
            if found.fidelity.error < best.fidelity.error:
                best = found
        return best

    @property
    def _measured(self) -> bool:
        return self._request.target.measurable()

    def _variants(self, precision: str) -> Sequence[str]:
        found: Sequence[str] = self._dialect.variants(self._request, precision)
        return found

    def _candidates(self, precision: str, variant: str, guarded: bool) -> list[Candidate]:
        """What is worth timing of one variant: as it is, and with doubtful layers in fp32."""
        try:
            first = self._candidate(precision, variant, {}, guarded)
            if first is None or precision != "int8" or not self._measured:
                return [] if first is None else [first]
            doubtful = self._doubtful(variant, first)
            if not doubtful:
                return [first]
            second = self._candidate(precision, variant, doubtful, guarded)
            return [first] if second is None else [first, second]
        except CondensecError as error:
            self._left_out(Recipe(precision, variant), error.message)
            return []

    def _doubtful(self, variant: str, one: Candidate) -> dict[str, str]:
        found: dict[str, str] = self._dialect.doubtful(self._request, variant)
        return {} if set(found) <= set(one.recipe.exclude) else found

    def _candidate(
        self, precision: str, variant: str, in_fp32: Mapping[str, str], guarded: bool
    ) -> Candidate | None:
        """One variant, as true as it can be had; None (and a note) where it doesn't keep the guard."""
        reasons = dict(in_fp32)
        if precision == "int8" and not self._measured:
            reasons |= self._dialect.slow(self._request, variant)
        recipe = Recipe(precision, variant, exclude=tuple(reasons))
        one = self._truest(recipe, reasons) if precision == "int8" else self._write(recipe)
        if not guarded or self._accepted(one):
            return one
        found = self._relaxed(one) if precision == "int8" else None
        if found is None:
            self._left_out(one.recipe, f"it doesn't keep the guard ({one.fidelity})")
        return found

    def _truest(self, recipe: Recipe, reasons: Mapping[str, str]) -> Candidate:
        """The same recipe with each method of calibration; the method found first holds for all variants."""
        methods = (self._method,) if self._method else METHODS
        found = [self._write(replace(recipe, method=method), reasons) for method in methods]
        first = found[0]
        best = min(found, key=lambda one: one.fidelity.error)
        if best.fidelity.error >= _CLEARLY * first.fidelity.error:
            best = first
        self._method = best.recipe.method
        return best

    def _relaxed(self, one: Candidate) -> Candidate | None:
        """The same with as few of its worst layers in fp32 as the guard takes; None if that doesn't help."""
        layers = [layer.node for layer in worst_layers(self._request, one.recipe)]
        most = len(layers) - 1 if self._measured else len(layers) // 2
        failed, passed, found = 0, most + 1, None
        searches = searched(source_macs(self._request))
        step = 2 if searches == _SEARCHES[1] else 4  # few trials take longer strides
        for _ in range(searches):
            count = min(max(1, step * failed), most) if found is None else (failed + passed) // 2
            if not failed < count < passed:
                break
            candidate = self._in_fp32(one, layers[:count], "among those that lose most in int8")
            if self._accepted(candidate):
                passed, found = count, candidate
            else:
                failed = count
        return found

    def _in_fp32(self, one: Candidate, layers: Sequence[str], why: str) -> Candidate:
        """The same with some more layers in fp32."""
        reasons = {**one.reasons, **dict.fromkeys(layers, why)}
        return self._write(replace(one.recipe, exclude=tuple(reasons)), reasons)

    def _write(self, recipe: Recipe, reasons: Mapping[str, str] | None = None) -> Candidate:
        path = self._draft()
        notes = tuple(self._dialect.write(self._request, recipe, path))
        fidelity = check(path, self._request, self._expected, recipe.precision)
        return Candidate(path, recipe, notes, fidelity, dict(reasons or {}))

    def _draft(self) -> Path:
        """Where the next graph is written: a file in a folder of its own."""
        self._written += 1
        path = self._work / str(self._written) / FILE
        path.parent.mkdir()
        return path

    def _accepted(self, one: Candidate) -> bool:
        if self._accept is not None:
            return self._accept(one.path)
        agreement = one.fidelity.agreement
        return one.fidelity.cosine >= _COSINE if agreement is None else agreement >= _AGREEMENT

    def _time(self, a: Candidate, b: Candidate) -> bench.Comparison:
        return bench.compare(a.path, b.path, self._request.feeds(), protocol=QUICK)

    def _faster(self, base: Candidate, one: Candidate) -> float | None:
        """The measured ratio to fp32, if the interval is below 1; else None, and a note."""
        result = self._time(base, one)
        self.tried[str(one.recipe)] = result.ratio
        if result.verdict == "faster":
            return result.ratio
        low, high = result.ci95
        why = f"{result.ratio:.2f}x (95% interval {low:.2f} to {high:.2f}) the time of fp32 here"
        self._left_out(one.recipe, why)
        return None

    def _left_out(self, recipe: Recipe, why: str) -> None:
        self.notes.append(f"{recipe} was left out: {why}")
