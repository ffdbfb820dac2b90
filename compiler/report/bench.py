"""What ``condensec bench`` measured, as one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from condensec.report.html import environment, source


def page(document: Mapping[str, Any], place: str, headline: str) -> str:
    """The page.

    Args:
        document: what ``condensec bench --json --profile`` prints.
        place: the machine, in a line.
        headline: the verdict, or what was measured.
    """
    two = "a" in document
    models = [document["a"], document["b"]] if two else [document]
    profile = document["profile"]
    parts = [("operator", profile["operators"]), ("layer", profile["layers"])]
    times = [c[side] or 0.0 for _, changes in parts for c in changes for side in ("before_ms", "after_ms")]
    text = environment().get_template("bench.html").render(
        title=" against ".join(model["name"] for model in reversed(models)),
        style=Markup(source("style.css")),
        headline=headline,
        place=place,
        models=models,
        parts=parts,
        two=two,
        top=max([*times, 1e-9]),
    )  # fmt: skip
    return text + "\n"
