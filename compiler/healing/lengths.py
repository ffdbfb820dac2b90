"""Padded samples are trained at about their own length, not at that of the longest.

Sentences are filled up to one length, and a mask says what is filling. Where most are short, most of the work
goes into positions that nobody reads: of STS-B's sentences in rows of 48, seven positions of ten. So samples
are sorted into a few lengths, each with a training graph of its own over the same weights, and a batch holds
samples of one of them (bucketing by length, as in Khomenko et al. 2016, arXiv:1708.05604).

What a model gives must not depend on the filling. That isn't taken on trust: teacher and student are run both
ways on samples of each length, and only if their values agree is anything cut off. Models with an output that
is padded itself are left alone: which of its positions are read only their user knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from condensec.data.side import side_inputs
from condensec.errors import CondensecError
from condensec.healing.side import dims, ports

if TYPE_CHECKING:
    import onnx

    from condensec.data import Samples
    from condensec.serialized import ModelSource

    Compared = tuple[ModelSource, Sequence[str], Sequence[str]]

MASK = "mask"  # part of the name of an input that says what is filling
MOST = 3  # lengths, each of which costs a training graph
WORTH = 0.75  # of the positions: with more left than that all stay
_PLACES = 16  # lengths that are thought of, evenly up to the longest
_CHECKED = 8  # samples of each length
_SAME = 1e-3  # of a value's own scale: sums of another length are rounded in another way


@dataclass(frozen=True)
class Lengths:
    """Lengths that samples are cut to.

    Attributes:
        mask: input ``[N, S]`` of ones, then zeros.
        axes: input -> its axis of length S.
        sizes: lengths, ascending; the last one is S.
    """

    mask: str
    axes: Mapping[str, int]
    sizes: tuple[int, ...]

    def kinds(self, samples: Samples) -> np.ndarray:
        """Index in `sizes` of the shortest that holds all of a sample, for each of them."""
        return np.searchsorted(self.sizes, _filled(samples.inputs[self.mask]))

    def cut(self, samples: Samples, size: int) -> Samples:
        """The first ``size`` positions of all inputs."""
        inputs = {
            name: array[(slice(None),) * self.axes[name] + (slice(size),)] if name in self.axes else array
            for name, array in samples.inputs.items()
        }
        return replace(samples, inputs=inputs)


def find(model: onnx.ModelProto, samples: Samples, batch: int = 1) -> Lengths | None:
    """How samples are padded, if they are, and if it's worth the trouble.

    Args:
        model: says which axes are as long as the mask, by the names of its open dims.
        samples: to train with.
        batch: so many at a time.
    """
    given = ports(model)
    masks = {n: s[1] for n, s, _ in given if MASK in n.lower() and len(s) == 2 and isinstance(s[1], str)}
    if len(masks) != 1:
        return None
    ((mask, dim),) = masks.items()
    if any(dim in dims(output) for output in model.graph.output):
        return None
    axes = {name: shape.index(dim) for name, shape, _ in given if dim in shape}
    if any(axis == 0 for axis in axes.values()) or set(axes) & side_inputs(given):
        return None
    values = np.asarray(samples.inputs[mask])
    filled = _filled(values)
    if not np.array_equal(values, np.arange(values.shape[1]) < filled[:, None]):
        return None
    sizes = choose(filled, values.shape[1], batch)
    return Lengths(mask, axes, sizes) if len(sizes) > 1 else None


def choose(filled: np.ndarray, longest: int, least: int = 1) -> tuple[int, ...]:
    """The lengths, at most `MOST`, that leave the fewest positions; one alone where they aren't worth it.

    Args:
        filled: positions of each sample that are no padding.
        longest: positions of all of them.
        least: samples of each length but the longest, so that none has to be repeated to fill a batch.
    """
    step = max(1, longest // _PLACES)
    places = range(step, longest, step)
    best: tuple[int, ...] = (longest,)
    fewest = WORTH * longest
    for short in (s for count in range(1, MOST) for s in combinations(places, count)):
        kinds = np.searchsorted(short, filled)
        counts = np.bincount(kinds, minlength=MOST)[: len(short)]
        left = float(np.asarray((*short, longest))[kinds].mean())
        if left < fewest and counts.min() >= least:
            best, fewest = (*short, longest), left
    return best


def hold(lengths: Lengths, compared: Iterable[Compared], samples: Samples) -> bool:
    """Whether models give the same with the padding cut off.

    Args:
        lengths: to cut to.
        compared: models, the outputs and the values inside that have to be the same.
        samples: some of each length are run.
    """
    from condensec.runner import Session

    kinds = lengths.kinds(samples)
    for model, outputs, inside in compared:
        wanted = [*outputs, *inside]
        try:
            session = Session(model, extra_outputs=inside)
            for kind, size in enumerate(lengths.sizes[:-1]):
                few = samples.subset(np.flatnonzero(kinds == kind)[:_CHECKED])
                whole = session.run_samples(few, outputs=wanted)
                short = session.run_samples(lengths.cut(few, size), outputs=wanted)
                if not all(_same(corner(whole[name], short[name].shape), short[name]) for name in wanted):
                    return False
        except CondensecError:  # it only runs at the full length
            return False
    return True


def corner(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The first entries along each axis but that of the samples."""
    return array[(slice(None), *(slice(n) for n in shape[1:]))]


def _filled(mask: np.ndarray) -> np.ndarray:
    """Positions of each sample up to its last that isn't zero."""
    values = np.asarray(mask) != 0
    found: np.ndarray = values.shape[1] - values[:, ::-1].argmax(axis=1)
    return found


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape:
        return False
    scale = float(np.abs(a).max(initial=0.0))
    return bool(np.abs(a.astype(np.float64) - b).max(initial=0.0) <= _SAME * scale)
