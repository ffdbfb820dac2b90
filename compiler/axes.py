"""The axis algebra: what lives and dies together.

An axis of a tensor has a layout: a *term* over atoms.

* `Atom`: ``size`` units that can be cut one by one.
* `Sum`: concatenation; ``Concat(a, b)`` has the layout ``a ++ b``.
* `Prod`: row-major product, outer factor first; ``Reshape`` of ``heads*dim`` is ``heads x dim``.

Operators only ever say that two axes are *the same* (`Axes.unify`), that an axis is *cut into pieces*
(`Axes.pieces`), or that it *can't be cut* (`Axes.freeze`). Unification refines atoms until both sides have
the same shape: an atom that meets ``heads x dim`` becomes that product everywhere at once. What is left
when the graph has been read, the unrefined atoms, are the groups of units that may be removed.

The method is first-order unification (Robinson 1965) over sums and products of sized atoms, in place of
the pairwise dependency graph of DepGraph (Fang et al. 2023, arXiv:2301.12900): reshapes, splits and
concatenations are structure here, not special cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from condensec.terms import Atom, Prod, Sum, Term, Terms, count_resolved

__all__ = ["Atom", "Axes", "Prod", "Sum", "Term", "count_resolved"]


class Axes(Terms):
    """A system of axes under unification."""

    # -- unification ----------------------------------------------------------------------------

    def unify(self, a: Term, b: Term) -> None:
        """The two axes are one and the same. Where that can't be expressed, both are frozen.

        Raises:
            ValueError: the sizes differ (the graph itself is inconsistent).
        """
        a, b = self.resolve(a), self.resolve(b)
        if a.size != b.size:
            raise ValueError(f"axes of {a.size} and {b.size} units can't be the same")
        if a is b or a == b:
            return
        if isinstance(a, Atom):
            self._define(a, b)
        elif isinstance(b, Atom):
            self._define(b, a)
        elif isinstance(a, Sum) and isinstance(b, Sum):
            self._unify_sums(a, b)
        elif isinstance(a, Sum):
            self._unify_sum_with_product(a, b)
        elif isinstance(b, Sum):
            self._unify_sum_with_product(b, a)
        else:
            self._unify_products(a, b)

    def attempt(self, pairs: Sequence[tuple[Term, Term]]) -> bool:
        """Unify all pairs, unless that froze a unit that is free: then nothing has changed.

        Returns:
            Whether they are the same now.
        """
        free = {a.id: a for pair in pairs for term in pair for a in self.atoms(term) if a.frozen is None}
        log: list[tuple[Atom, tuple[Any, ...]]] = []
        self._log = log
        try:
            for a, b in pairs:
                self.unify(a, b)
            agreed = all(inner.frozen is None for atom in free.values() for inner in self.atoms(atom))
        finally:
            self._log = None
        if not agreed:
            for atom, state in reversed(log):
                (atom.frozen, atom.exact, atom.data, atom.hints, atom.origins, atom.least, atom.ref) = state
        return agreed

    def _define(self, atom: Atom, term: Term) -> None:
        if any(inner is atom for inner in self.atoms(term)):
            self.freeze(term, "this axis is tied to a rearrangement of itself")
            return
        self._save(atom)
        atom.ref = term
        whole = isinstance(term, Atom)
        if atom.least > 1:
            self.at_least(term, atom.least, f"at least {atom.least} units have to stay")
        for inner in self.atoms(term):
            self._save(inner)
            inner.exact &= atom.exact
            inner.data |= atom.data
            if inner.frozen is None:
                inner.frozen = atom.frozen
            if whole or not isinstance(term, Prod):
                inner.hints |= atom.hints
            if whole and atom.origins:
                inner.origins |= atom.origins

    def _unify_sums(self, a: Term, b: Term) -> None:
        left, right = [a], [b]
        while left:
            x, left = self._first_part(left)
            y, right = self._first_part(right)
            if x.size > y.size:
                x, rest = self.pieces(x, (y.size,))
                left.insert(0, rest)
            elif y.size > x.size:
                y, rest = self.pieces(y, (x.size,))
                right.insert(0, rest)
            self.unify(x, y)

    def _first_part(self, terms: list[Term]) -> tuple[Term, list[Term]]:
        head = self.resolve(terms[0])
        if isinstance(head, Sum):
            return head.parts[0], [*head.parts[1:], *terms[1:]]
        return head, terms[1:]

    def _unify_sum_with_product(self, a: Sum, b: Term) -> None:
        bounds = list(np.cumsum([part.size for part in a.parts])[:-1])
        for part, piece in zip(a.parts, self.pieces(b, [int(x) for x in bounds]), strict=True):
            self.unify(part, piece)

    def _unify_products(self, a: Prod, b: Prod) -> None:
        left: list[Term] = list(a.factors)
        right: list[Term] = list(b.factors)
        while left and right:
            x, left = self._first_factor(left)
            y, right = self._first_factor(right)
            if x.size != y.size:
                big, small = (x, y) if x.size > y.size else (y, x)
                if big.size % small.size:
                    reason = (
                        f"two reshapes factor this axis differently ({a.size} into {x.size} and {y.size})"
                    )
                    self.freeze(a, reason)
                    self.freeze(b, reason)
                    return
                outer, inner = self.factor(big, small.size)
                (left if big is x else right).insert(0, inner)
                x, y = outer, small
            self.unify(x, y)

    def _first_factor(self, terms: list[Term]) -> tuple[Term, list[Term]]:
        head = self.resolve(terms[0])
        if isinstance(head, Prod):
            return head.factors[0], [*head.factors[1:], *terms[1:]]
        return head, terms[1:]

    def factor(self, term: Term, outer: int) -> tuple[Term, Term]:
        """Refine a term into ``outer x (size / outer)`` and return both factors."""
        if term.size % outer:
            raise ValueError(f"{term.size} units don't divide into {outer} rows")
        x, y = self.atom(outer), self.atom(term.size // outer)
        self.unify(term, Prod((x, y), term.size))
        return x, y

    # -- cutting into pieces --------------------------------------------------------------------

    def pieces(self, term: Term, bounds: Sequence[int]) -> list[Term]:
        """Cut a term at ascending positions strictly inside it; returns ``len(bounds) + 1`` terms."""
        term = self.resolve(term)
        if not bounds:
            return [term]
        if isinstance(term, Atom):
            edges = [0, *bounds, term.size]
            origins = term.origins or frozenset((term.id,))
            parts = [self.atom(hi - lo, origins=origins) for lo, hi in pairwise(edges)]
            self._define(term, Sum(tuple(parts), term.size))
            return list(parts)
        if isinstance(term, Prod):
            term = self._cut_product(term, bounds)
        return self._cut_sum(term, bounds)

    def _cut_sum(self, term: Term, bounds: Sequence[int]) -> list[Term]:
        parts = term.parts if isinstance(term, Sum) else (term,)
        result: list[Term] = []
        run: list[Term] = []
        start, todo = 0, list(bounds)
        for part in parts:
            stop = start + part.size
            inside = [b - start for b in todo if start < b < stop]
            for piece in self.pieces(part, inside):
                run.append(piece)
                start += piece.size
                if todo and start == todo[0]:
                    todo.pop(0)
                    result.append(self.sum(run))
                    run = []
        result.append(self.sum(run))
        return result

    def _cut_product(self, term: Prod, bounds: Sequence[int]) -> Term:
        """The product written as a sum whose parts end at the bounds (distributing over the outer factor)."""
        outer, inner = term.factors[0], self.product(term.factors[1:])
        width = inner.size
        rows = sorted({q for b in bounds for q in (b // width, -(-b // width)) if 0 < q < outer.size})
        parts: list[Term] = []
        start = 0
        for row in self.pieces(outer, rows):
            inside = sorted({b - start * width for b in bounds if 0 < b - start * width < width * row.size})
            if inside and row.size == 1:
                self.freeze(row, "a single row of a reshaped axis that is split inside")
                parts.extend(self.pieces(inner, inside))
            else:
                parts.append(self.product((row, inner)))
            start += row.size
        return self.sum(parts)
