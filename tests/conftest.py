"""Makes `tests/models.py` importable as `models` (pytest's importlib mode leaves sys.path alone)."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# Results aren't kept between tests, or one would answer for another; tests of the cache turn it on.
os.environ.setdefault("CONDENSEC_CACHE_SIZE", "0")


@pytest.fixture(autouse=True)
def few_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models would be tried in as many widths as the product allows: a few are enough here."""
    monkeypatch.setattr("condensec.stages.aims.MOST", 4)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file with the residual CNN that runs of the whole line are tried on; a test file may have its own."""
    from models import residual_cnn, save

    return save(residual_cnn(), tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Samples for it."""
    from models import residual_cnn, save_samples

    return save_samples(residual_cnn(), tmp_path / "data.npz", count=96)
