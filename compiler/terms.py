"""Terms over atoms, the layouts of `condensec.axes`: making, marking and reading them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Union

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]


@dataclass(eq=False, slots=True)
class Atom:
    """A set of ``size`` units. Mutable: once refined, ``ref`` is the term that replaces it.

    Attributes:
        frozen: why no unit may be removed, or None.
        exact: False where a norm or softmax reduces over the units.
        hints: roles seen so far (``head``, ``head_dim``, ``neuron``, ...), for naming only.
        data: whether the size is that of an axis of the data, which may differ from run to run.
        origins: ids of the atoms this one was cut from, empty for a whole; pieces of one axis share them.
        least: so many units stay at least (a router chooses among them).
    """

    id: int
    size: int
    frozen: str | None = None
    exact: bool = True
    data: bool = False
    hints: set[str] = field(default_factory=set)
    origins: frozenset[int] = frozenset()
    least: int = 1
    ref: Term | None = None


@dataclass(frozen=True, slots=True)
class Sum:
    """Concatenation of terms."""

    parts: tuple[Term, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Prod:
    """Row-major product of terms, outer factor first."""

    factors: tuple[Term, ...]
    size: int


Term = Union[Atom, Sum, Prod]  # noqa: UP007  (a forward reference in a runtime alias)


class Terms:
    """The terms of one system of axes. Deterministic: atom ids count up from zero."""

    def __init__(self) -> None:
        self._count = 0
        self._log: list[tuple[Atom, tuple[Any, ...]]] | None = None  # states to go back to

    # -- making terms ---------------------------------------------------------------------------

    def atom(self, size: int, *, origins: frozenset[int] = frozenset()) -> Atom:
        """A new axis of ``size`` units that nothing is known about."""
        new = Atom(self._count, size, origins=origins)
        self._count += 1
        return new

    def fixed(self, size: int, reason: str, *, data: bool = False) -> Atom:
        """A new axis that can't be cut; ``data``: its size may differ from run to run."""
        new = self.atom(size)
        new.frozen, new.data = reason, data
        return new

    def sum(self, parts: Iterable[Term]) -> Term:
        """Concatenation, flattened."""
        flat: list[Term] = []
        for part in parts:
            part = self.resolve(part)
            flat.extend(part.parts if isinstance(part, Sum) else (part,))
        return flat[0] if len(flat) == 1 else Sum(tuple(flat), sum(p.size for p in flat))

    def product(self, factors: Iterable[Term]) -> Term:
        """Row-major product, flattened. Factors of one unit can't be cut away and drop out."""
        flat: list[Term] = []
        single: Term | None = None
        for factor in factors:
            factor = self.resolve(factor)
            if factor.size == 1:
                self.freeze(factor, "a single unit inside a reshaped axis")
                single = factor
                continue
            flat.extend(factor.factors if isinstance(factor, Prod) else (factor,))
        if not flat:
            return single if single is not None else self.fixed(1, "empty product")
        return flat[0] if len(flat) == 1 else Prod(tuple(flat), prod(f.size for f in flat))

    def resolve(self, term: Term) -> Term:
        """The term with every refined atom replaced, flattened."""
        if isinstance(term, Atom):
            return term if term.ref is None else self._follow(term)
        inner = term.parts if isinstance(term, Sum) else term.factors
        if all(isinstance(t, Atom) and t.ref is None for t in inner):
            return term
        return self.sum(inner) if isinstance(term, Sum) else self.product(inner)

    def _follow(self, atom: Atom) -> Term:
        """Where a chain of refinements ends. The chain is shortened: the next walk is one step."""
        path = [atom]
        end: Term = atom
        while isinstance(end, Atom) and end.ref is not None:
            path.append(end)
            end = end.ref
        if not isinstance(end, Atom):
            end = self.resolve(end)
        for passed in path:
            self._save(passed)
            passed.ref = end
        return end

    def atoms(self, term: Term) -> list[Atom]:
        """The unrefined atoms of a term, in order of appearance, without repeats."""
        found: dict[int, Atom] = {}
        stack: list[Term] = [self.resolve(term)]
        while stack:
            top = stack.pop()
            if isinstance(top, Atom):
                found.setdefault(top.id, top)
            else:
                stack.extend(reversed(top.parts if isinstance(top, Sum) else top.factors))
        return list(found.values())

    # -- marks ----------------------------------------------------------------------------------

    def freeze(self, term: Term, reason: str) -> None:
        """No unit of the term may be removed. The first reason stays."""
        for atom in self.atoms(term):
            if atom.frozen is None:
                self._save(atom)
                atom.frozen = reason

    def is_free(self, term: Term) -> bool:
        """Whether any unit of the term may be removed."""
        return any(atom.frozen is None for atom in self.atoms(term))

    def reduced(self, term: Term) -> None:
        """A norm, softmax or mean reduces over the term: cuts of it aren't mask-exact."""
        for atom in self.atoms(term):
            atom.exact = False

    def at_least(self, term: Term, count: int, reason: str) -> None:
        """So many units of the term stay; for that, they have to be cut one by one."""
        term = self.resolve(term)
        if isinstance(term, Atom):
            self._save(term)
            term.least = max(term.least, count)
        else:
            self.freeze(term, reason)

    def hint(self, term: Term, role: str) -> None:
        """Remember a role of the term's units, for naming groups."""
        for atom in self.atoms(term):
            atom.hints.add(role)

    def _save(self, atom: Atom) -> None:
        if self._log is not None:
            hints = set(atom.hints)
            state = (atom.frozen, atom.exact, atom.data, hints, atom.origins, atom.least, atom.ref)
            self._log.append((atom, state))

    # -- reading --------------------------------------------------------------------------------

    def alive(self, term: Term, kept: Mapping[int, BoolArray]) -> BoolArray:
        """Which indices of an axis stay: boolean ``[size]``, given kept units by atom id (absent: all)."""
        term = self.resolve(term)
        if isinstance(term, Atom):
            mask = kept.get(term.id)
            return np.ones(term.size, np.bool_) if mask is None else mask
        if isinstance(term, Sum):
            return np.concatenate([self.alive(part, kept) for part in term.parts])
        mask = np.ones(1, np.bool_)
        for factor in term.factors:
            mask = np.logical_and.outer(mask, self.alive(factor, kept)).reshape(-1)
        return mask

    def count(self, term: Term, sizes: Mapping[int, int]) -> int:
        """How many indices of an axis stay, given the number of kept units by atom id (absent: all)."""
        return count_resolved(self.resolve(term), sizes)

    def units(self, term: Term, atom: Atom) -> npt.NDArray[np.int64]:
        """For each index of an axis the unit of ``atom`` it belongs to, or -1: ``[size]``."""
        term = self.resolve(term)
        if isinstance(term, Atom):
            return np.arange(term.size) if term is atom else np.full(term.size, -1, np.int64)
        if isinstance(term, Sum):
            return np.concatenate([self.units(part, atom) for part in term.parts])
        result = np.full(1, -1, np.int64)
        for factor in term.factors:
            inner = self.units(factor, atom)
            both = np.where(inner[None, :] >= 0, inner[None, :], result[:, None])
            result = both.reshape(-1)
        return result


def count_resolved(term: Term, sizes: Mapping[int, int]) -> int:
    """`Terms.count` of a term that `Terms.resolve` gave, for those who count the same one often."""
    if isinstance(term, Atom):
        return sizes.get(term.id, term.size)
    if isinstance(term, Sum):
        return sum([count_resolved(part, sizes) for part in term.parts])
    return prod([count_resolved(factor, sizes) for factor in term.factors])
