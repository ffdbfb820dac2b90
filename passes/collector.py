"""Keep Python's cyclic garbage collector out of the way while large graphs are built.

It walks every living object again and again as their number grows, which doubles the time at ten thousand
nodes. What the passes make is either kept or freed by reference counts. Nor are very many objects walked
at the end: freezing and thawing moves them to the oldest generation at once (see `gc.freeze`).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

MANY = 200_000  # objects; some ten thousand nodes


@contextmanager
def paused() -> Iterator[None]:
    """No cyclic collection inside; as before outside."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            if gc.get_count()[0] > MANY:
                gc.freeze()
                gc.unfreeze()
            gc.enable()
