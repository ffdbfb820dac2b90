"""Keeping samples apart, so that nothing is measured on what it was fitted to."""

from __future__ import annotations

import numpy as np

from condensec.data.types import Index, Samples, Splits

FEWEST = 16  # with fewer samples, keeping them apart would leave nothing to measure on
MOST_CALIBRATION, MOST_VALIDATION, MOST_TEST = 1024, 5000, 10_000

_SHARED_NOTE = "only {n} samples: calibration, training, validation and test all use them"


def split(samples: Samples, val: Samples | None = None, *, seed: int = 0) -> Splits:
    """Split samples at random into four disjoint parts; the same seed gives the same parts.

    The parts come in random order, so that the first samples of one stand for all of it: files are often
    sorted by source or class. The training samples stay in the data's order; training shuffles them.

    Of the data: calibration 10% (at most 1024 samples), validation 20% (at most 5000), test 20% (at most
    10,000), the rest training. With separate held-out samples, those are halved into validation and test
    (at most the same), and the data into calibration (20%) and training. With fewer than 16 samples to
    split, the parts overlap and `Splits.note` says so.

    Args:
        samples: the data.
        val: held-out samples, if the user has some.
        seed: of the random order.
    """
    if val is None:
        if len(samples) < FEWEST:
            return Splits(samples, samples, samples, samples, _SHARED_NOTE.format(n=len(samples)))
        n = len(samples)
        calibration, validation, test, train = _parts(
            samples,
            (_share(n, 0.1, MOST_CALIBRATION), _share(n, 0.2, MOST_VALIDATION), _share(n, 0.2, MOST_TEST)),
            seed,
        )
        return Splits(calibration, train, validation, test)
    notes = []
    if len(samples) < FEWEST:
        notes.append(f"only {len(samples)} samples: calibration and training both use them")
        calibration = train = samples
    else:
        calibration, train = _parts(samples, (_share(len(samples), 0.2, MOST_CALIBRATION),), seed)
    if len(val) < FEWEST:
        notes.append(f"only {len(val)} held-out samples: validation and test both use them")
        validation = test = val
    else:
        half = min(len(val) // 2, MOST_VALIDATION)
        validation, test, _ = _parts(val, (half, min(len(val) - half, MOST_TEST)), seed + 1)
    return Splits(calibration, train, validation, test, "; ".join(notes))


def _share(count: int, share: float, most: int) -> int:
    return max(1, min(most, round(count * share)))


def _parts(samples: Samples, sizes: tuple[int, ...], seed: int) -> tuple[Samples, ...]:
    """Disjoint random parts of the given sizes, in random order, and the rest, in the data's order."""
    order: Index = np.random.default_rng(seed).permutation(len(samples))
    *parts, rest = np.split(order, np.cumsum(sizes))
    return tuple(samples.subset(part) for part in (*parts, np.sort(rest)))
