"""What was meant by a word that isn't known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], label: str) -> str:
    """A hint that names what is near, and all that is known."""
    known = tuple(known)
    near = difflib.get_close_matches(name, known, 1, 0.5)
    listed = f"{label}: {', '.join(known)}"
    return f"did you mean '{near[0]}'? {listed}" if near else listed
