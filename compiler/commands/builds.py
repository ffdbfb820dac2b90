"""Commands for build systems: cache."""

from __future__ import annotations

import datetime
from typing import Annotated

import typer

from condensec import console
from condensec.commands import options as o
from condensec.commands.tables import table


def cache(
    clear: Annotated[
        bool,
        typer.Option("--clear", help="Remove what is kept.", rich_help_panel="What", show_default=False),
    ] = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Show the kept results of earlier runs, or remove them."""
    from condensec.builds.cache import ResultCache

    kept = ResultCache()
    removed = kept.clear() if clear else 0
    entries = kept.entries()
    total = sum(entry.bytes for entry in entries)
    document = {
        "schema": 1,
        "folder": str(kept.folder),
        "limit": kept.limit,
        "bytes": total,
        "removed": removed,
        "entries": [vars(entry) for entry in entries],
    }
    facts = [
        ("folder", str(kept.folder)),
        ("kept", f"{len(entries)} results, {total:,} bytes of at most {kept.limit:,}"),
    ]
    facts += [("removed", str(removed))] if clear else []
    rows = [(e.model, f"{e.bytes:,}", _day(e.used), e.key[:12]) for e in reversed(entries)]
    parts = [table(("", ""), facts)]
    parts += [table(("model", "bytes", "last used", "key"), rows)] if rows else []
    console.current().result("\n\n".join(parts), document)


def _day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).isoformat(" ", "minutes")
