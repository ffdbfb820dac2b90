"""The report as one HTML file that loads nothing: no network, no script, style and charts inside."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from condensec.report import charts
from condensec.report import format as fmt
from condensec.report.model import Report, write_text
from condensec.report.terminal import proof_lines

LONG = 40  # rows after which a table scrolls in its own window on the screen


def render(report: Report) -> str:
    """The whole page."""
    page = _environment().get_template("page.html")
    text = page.render(
        r=report,
        style=Markup(_source("style.css")),
        heat=charts.heat_map(report),
        widest=max((layer.macs_before for layer in report.layers), default=0),
        slowest=max((s for name, s in report.timings.items() if name != "total"), default=0.0),
    )
    return text + "\n"


def write_html(report: Report, path: Path) -> None:
    """Write report.html, whole or not at all."""
    write_text(path, render(report))


def _source(name: str) -> str:
    return (files("condensec.report") / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(fmt=fmt, charts=charts, proof=proof_lines, LONG=LONG)
    return environment
