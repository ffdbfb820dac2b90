"""The whole line on a model, as quick as it goes and the same to the byte each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from condensec import api
from condensec.report.model import Report

# a modelled target: nothing is timed, so runs repeat to the byte
FAST: dict[str, Any] = {"target": "mobile-cpu", "heal": "off", "max_drop": float("inf"), "jobs": 1}


def compress(model: Path, output: Path, **options: Any) -> Report:
    """`condensec.compress` with those options."""
    return api.compress(model, output=output, **{**FAST, **options})
