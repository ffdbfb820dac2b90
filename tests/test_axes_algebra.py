"""The axis algebra on its own: unification, pieces, products, marks, and what stays of an axis."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condensec.axes import Atom, Axes, Prod, Term


def random_kept(axes: Axes, terms: list[Term], seed: int) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    kept = {}
    for atom in {a.id: a for t in terms for a in axes.atoms(t)}.values():
        mask = rng.random(atom.size) < 0.5
        mask[rng.integers(atom.size)] = True
        kept[atom.id] = mask if atom.frozen is None else np.ones(atom.size, np.bool_)
    return kept


def test_an_atom_that_meets_a_product_becomes_it_everywhere() -> None:
    axes = Axes()
    flat, heads, dim = axes.atom(12), axes.atom(3), axes.atom(4)
    other = axes.atom(12)
    axes.unify(flat, other)
    axes.unify(other, axes.product([heads, dim]))
    assert [a.id for a in axes.atoms(flat)] == [heads.id, dim.id]
    keep = {heads.id: np.array([True, False, True]), dim.id: np.array([True, True, False, True])}
    expected = [0, 1, 3, 8, 9, 11]
    assert np.flatnonzero(axes.alive(flat, keep)).tolist() == expected
    assert axes.count(flat, {heads.id: 2, dim.id: 3}) == 6


def test_products_of_different_shape_refine_each_other() -> None:
    axes = Axes()
    left = axes.product([axes.atom(2), axes.atom(12)])
    right = axes.product([axes.atom(6), axes.atom(4)])
    axes.unify(left, right)
    assert [a.size for a in axes.atoms(left)] == [2, 3, 4]
    assert [a.id for a in axes.atoms(left)] == [a.id for a in axes.atoms(right)]


def test_factors_that_do_not_divide_freeze_both_sides_with_both_sizes() -> None:
    axes = Axes()
    left, right = axes.product([axes.atom(4), axes.atom(3)]), axes.product([axes.atom(3), axes.atom(4)])
    axes.unify(left, right)
    reasons = {a.frozen for t in (left, right) for a in axes.atoms(t)}
    assert reasons == {"two reshapes factor this axis differently (12 into 4 and 3)"}


def test_concatenations_with_other_borders_are_cut_at_all_of_them() -> None:
    axes = Axes()
    left = axes.sum([axes.atom(5), axes.atom(7)])
    right = axes.sum([axes.atom(3), axes.atom(9)])
    axes.unify(left, right)
    assert [a.size for a in axes.atoms(left)] == [3, 2, 7]
    assert [a.id for a in axes.atoms(right)] == [a.id for a in axes.atoms(left)]


def test_a_product_split_at_a_row_is_a_sum_of_products() -> None:
    axes = Axes()
    three, inner = axes.atom(3), axes.atom(4)
    q, k, v = axes.pieces(axes.product([three, inner]), [4, 8])
    assert axes.resolve(q) is axes.resolve(k) is axes.resolve(v) is inner
    assert three.frozen is None or three.ref is not None
    whole = axes.resolve(axes.product([three, inner]))
    assert whole.size == 12
    keep = {inner.id: np.array([True, False, False, True])}
    assert np.flatnonzero(axes.alive(whole, keep)).tolist() == [0, 3, 4, 7, 8, 11]


def test_an_axis_tied_to_a_rearrangement_of_itself_is_frozen() -> None:
    axes = Axes()
    a, b = axes.pieces(axes.atom(8), [4])
    axes.unify(axes.sum([a, b]), axes.sum([b, a]))
    assert axes.resolve(a) is axes.resolve(b)  # two halves that change places are the same half
    d = axes.atom(4)
    axes.unify(Prod((axes.atom(2), axes.atom(2)), 4), d)
    assert [x.size for x in axes.atoms(d)] == [2, 2]


def test_marks_follow_into_the_pieces() -> None:
    axes = Axes()
    frozen, reduced, named = axes.atom(6), axes.atom(6), axes.atom(6)
    axes.freeze(frozen, "first")
    axes.freeze(frozen, "second")
    axes.reduced(reduced)
    axes.hint(named, "head")
    for term, check in ((frozen, "frozen"), (reduced, "exact"), (named, "hints")):
        pieces = axes.pieces(term, [2])
        found = [getattr(a, check) for p in pieces for a in axes.atoms(p)]
        assert found == {"frozen": ["first"] * 2, "exact": [False] * 2, "hints": [{"head"}] * 2}[check]


def test_the_size_of_a_data_axis_stays_marked_through_ties() -> None:
    axes = Axes()
    batch = axes.fixed(4, "an axis of the data", data=True)
    outer, inner = axes.factor(batch, 2)
    assert all(a.data for t in (outer, inner) for a in axes.atoms(t))
    plain = axes.atom(4)
    axes.unify(plain, axes.product([outer, inner]))
    assert all(a.data for a in axes.atoms(plain))


def test_sizes_that_differ_are_an_error() -> None:
    axes = Axes()
    with pytest.raises(ValueError, match="4 and 5 units"):
        axes.unify(axes.atom(4), axes.atom(5))
    with pytest.raises(ValueError, match="divide"):
        axes.factor(axes.atom(5), 2)


def test_units_tell_which_unit_an_index_belongs_to() -> None:
    axes = Axes()
    heads, dim, rest = axes.atom(2), axes.atom(3), axes.atom(2)
    whole = axes.sum([axes.product([heads, dim]), rest])
    assert axes.units(whole, heads).tolist() == [0, 0, 0, 1, 1, 1, -1, -1]
    assert axes.units(whole, dim).tolist() == [0, 1, 2, 0, 1, 2, -1, -1]
    assert axes.units(whole, rest).tolist() == [-1] * 6 + [0, 1]


@st.composite
def layouts(draw: st.DrawFn, size: int) -> list[tuple[str, list[int]]]:
    """A few ways to read an axis of ``size``: as rows, or as pieces."""
    divisors = [d for d in range(2, size) if size % d == 0]
    ways = []
    for _ in range(draw(st.integers(1, 4))):
        if divisors and draw(st.booleans()):
            ways.append(("rows", [draw(st.sampled_from(divisors))]))
        else:
            cuts = draw(st.sets(st.integers(1, size - 1), min_size=1, max_size=3))
            ways.append(("cut", sorted(cuts)))
    return ways


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from([4, 6, 8, 12, 18, 24]), st.integers(0, 10_000))
def test_however_an_axis_is_read_both_readings_agree_on_what_stays(
    data: st.DataObject, size: int, seed: int
) -> None:
    axes = Axes()
    axis = axes.atom(size)
    readings: list[Term] = []
    for kind, numbers in data.draw(layouts(size)):
        if kind == "rows":
            readings.append(axes.product([axes.atom(numbers[0]), axes.atom(size // numbers[0])]))
        else:
            edges = [0, *numbers, size]
            readings.append(axes.sum(axes.atom(b - a) for a, b in pairwise(edges)))
        axes.unify(axis, readings[-1])
    kept = random_kept(axes, [axis, *readings], seed)
    masks = [axes.alive(t, kept) for t in (axis, *readings)]
    counts = {i: int(m.sum()) for i, m in kept.items()}
    for term, mask in zip((axis, *readings), masks, strict=True):
        assert mask.shape == (size,)
        assert np.array_equal(mask, masks[0])
        assert axes.count(term, counts) == mask.sum()
        assert axes.resolve(term).size == size
        for atom in axes.atoms(term):  # every index of a unit lives and dies with it
            units = axes.units(term, atom)
            dead = ~kept[atom.id]
            assert not mask[np.isin(units, np.flatnonzero(dead))].any()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.data())
def test_pieces_of_any_term_join_to_the_whole(sizes: list[int], data: st.DataObject) -> None:
    axes = Axes()
    parts: list[Term] = [axes.atom(s) if s < 4 else axes.product([axes.atom(2), axes.atom(s)]) for s in sizes]
    whole = axes.sum(parts)
    bounds = sorted(data.draw(st.sets(st.integers(1, whole.size - 1), max_size=3))) if whole.size > 1 else []
    before = whole.size
    pieces = axes.pieces(whole, bounds)
    assert [p.size for p in pieces] == np.diff([0, *bounds, before]).tolist()
    kept = random_kept(axes, [whole], 0)
    joined = np.concatenate([axes.alive(p, kept) for p in pieces])
    assert np.array_equal(joined, axes.alive(whole, kept))


def test_a_negative_control_a_mask_of_the_wrong_factor_order_differs() -> None:
    axes = Axes()
    a, b = axes.atom(2), axes.atom(3)
    keep = {a.id: np.array([True, False]), b.id: np.array([True, False, True])}
    right, wrong = axes.alive(axes.product([a, b]), keep), axes.alive(axes.product([b, a]), keep)
    assert right.sum() == wrong.sum() == 2
    assert not np.array_equal(right, wrong)


def test_atom_ids_count_from_zero_so_that_two_runs_agree() -> None:
    first, second = Axes(), Axes()
    for axes in (first, second):
        axes.pieces(axes.atom(6), [2, 4])
    assert isinstance(first.atom(1), Atom)
    assert first.atom(2).id == second.atom(2).id + 1


def test_an_attempt_that_would_freeze_a_free_unit_changes_nothing() -> None:
    axes = Axes()
    free, frozen, rows = (
        axes.atom(12),
        axes.fixed(12, "an output"),
        axes.product([axes.atom(3), axes.atom(4)]),
    )
    other, column = axes.atom(6), axes.atom(6)
    axes.unify(free, axes.sum([other, column]))
    pairs: list[tuple[Term, Term]] = [(rows, axes.atom(12)), (free, frozen)]
    assert not axes.attempt(pairs)
    assert [a.frozen for a in axes.atoms(free)] == [None, None]
    assert axes.atoms(frozen) == [frozen]
    assert isinstance(axes.resolve(pairs[0][1]), Atom)


def test_an_attempt_that_freezes_nothing_ties_like_unification() -> None:
    axes = Axes()
    a, b, x, y = (axes.atom(12) for _ in range(4))
    axes.freeze(x, "an output")
    axes.freeze(y, "another")
    assert axes.attempt([(a, b), (x, y)])
    assert axes.resolve(a) is axes.resolve(b)
    assert not axes.attempt([(a, x)])


def test_an_attempt_to_tie_an_axis_to_a_rearrangement_of_itself_is_taken_back() -> None:
    axes = Axes()
    left, right = axes.atom(4), axes.atom(4)
    assert not axes.attempt([(axes.sum([left, right]), axes.product([axes.atom(2), left]))])
    assert left.frozen is None
    assert right.frozen is None


def _random_term(axes: Axes, rng: np.random.Generator, size: int, known: list[Atom]) -> Term:
    """A term of a size: an atom (of those there are, at times), a sum or a product."""
    same = [a for a in known if a.size == size]
    way = rng.integers(4)
    if way == 0 and same:
        return same[int(rng.integers(len(same)))]
    if way == 1 and size > 1:
        first = int(rng.integers(1, size))
        return axes.sum([_random_term(axes, rng, first, known), _random_term(axes, rng, size - first, known)])
    divisors = [d for d in range(2, size) if size % d == 0]
    if way == 2 and divisors:
        outer = divisors[int(rng.integers(len(divisors)))]
        return axes.product([_random_term(axes, rng, n, known) for n in (outer, size // outer)])
    known.append(axes.atom(size))
    if rng.random() < 0.2:
        axes.freeze(known[-1], "an output")
    return known[-1]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6))
def test_an_attempt_freezes_nothing_that_is_free_or_leaves_everything_as_it_was(seed: int) -> None:
    rng = np.random.default_rng(seed)
    axes, known = Axes(), list[Atom]()
    terms = [_random_term(axes, rng, int(rng.choice([4, 6, 12])), known) for _ in range(6)]
    for a, b in ((0, 1), (2, 3)):
        if terms[a].size == terms[b].size:
            axes.unify(terms[a], terms[b])

    def state() -> list[object]:
        now = [(a.id, a.size, a.frozen, a.exact, a.least, a.origins) for t in terms for a in axes.atoms(t)]
        return [now, [axes.resolve(t) for t in terms]]

    pairs = [(x, y) for x in terms[:4] for y in terms[4:] if x.size == y.size]
    free = [a for t in terms for a in axes.atoms(t) if a.frozen is None]
    before = state()
    if axes.attempt(pairs):
        assert all(inner.frozen is None for atom in free for inner in axes.atoms(atom) if inner.size > 1)
        for x, y in pairs:
            kept = random_kept(axes, [x, y], seed)
            assert np.array_equal(axes.alive(x, kept), axes.alive(y, kept))
    else:
        assert state() == before
