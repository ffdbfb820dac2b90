"""Makes `tests/models.py` importable as `models` (pytest's importlib mode leaves sys.path alone)."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

# Results aren't kept between tests, or one would answer for another; tests of the cache turn it on.
os.environ.setdefault("CONDENSEC_CACHE_SIZE", "0")
