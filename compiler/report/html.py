"""The report as one HTML file that loads nothing: style, charts and the only script are inside.

The script pans and zooms the drawing of the graph; the page's security policy lets no other one run.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from condensec.report import charts, drawing
from condensec.report import format as fmt
from condensec.report.model import Report, write_text
from condensec.report.terminal import proof_lines

LONG = 40  # rows after which a table scrolls in its own window on the screen


def render(report: Report) -> str:
    """The whole page."""
    page = environment().get_template("page.html")
    drawn = drawing.graph_drawing(report)
    script = source("graph.js").strip() if drawn else ""
    text = page.render(
        r=report,
        style=Markup(source("style.css")),
        drawing=drawn,
        timed=any(target.nodes for target in report.targets.values()),
        script=Markup(script),
        policy=_policy(script),
        heat=charts.heat_map(report),
        widest=max((layer.macs_before for layer in report.layers), default=0),
        slowest=max((s for name, s in report.timings.items() if name != "total"), default=0.0),
    )
    return text + "\n"


def write_html(report: Report, path: Path) -> None:
    """Write report.html, whole or not at all."""
    write_text(path, render(report))


def _policy(script: str) -> str:
    """What the page may do: nothing from outside, and no script but this one, known by its hash."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f" script-src 'sha256-{digest}';" if script else ""
    return f"default-src 'none';{allowed} style-src 'unsafe-inline'; img-src data:"


def source(name: str) -> str:
    """The text of a file of this package."""
    return (files("condensec.report") / name).read_text(encoding="utf-8")


@cache
def environment() -> Environment:
    """Where templates come from, and what they may call."""
    environment = Environment(
        loader=FunctionLoader(source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(fmt=fmt, charts=charts, proof=proof_lines, LONG=LONG)
    return environment
