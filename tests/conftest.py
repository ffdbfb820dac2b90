"""Makes `tests/models.py` importable as `models` (pytest's importlib mode leaves sys.path alone)."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def few_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models would be tried in as many widths as the product allows: a few are enough here."""
    monkeypatch.setattr("condensec.stages.aims.MOST", 4)
