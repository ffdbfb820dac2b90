"""Plain text tables for commands that list things."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

_GAP = "  "
_LEAST = 16  # columns of text a cell keeps


def table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Columns as wide as their longest cell; the widest ones are wrapped to the width (default: terminal).

    Args:
        head: titles; all empty = none are shown.
        rows: cells.
        width: columns of text in all.
    """
    lines = [list(map(str, head)), *(list(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    room = (width or min(100, shutil.get_terminal_size((80, 24)).columns)) - len(_GAP) * (len(widths) - 1)
    while sum(widths) > room and max(widths) > _LEAST:
        widest = widths.index(max(widths))
        others = sorted(widths)[-2] if len(widths) > 1 else 0
        wanted = room - (sum(widths) - widths[widest])
        widths[widest] = max(_LEAST, wanted, min(others, widths[widest] - 1))
    shown = lines if any(head) else lines[1:]
    text = []
    for number, line in enumerate(shown):
        cells = [textwrap.wrap(cell, w) or [""] for cell, w in zip(line, widths, strict=True)]
        for part in range(max(map(len, cells))):
            row = [c[part] if part < len(c) else "" for c in cells]
            text.append(_GAP.join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
        if number == 0 and any(head):
            text.append(_GAP.join("-" * w for w in widths))
    return "\n".join(text)
