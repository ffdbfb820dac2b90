"""The values that an option takes, for completion. Nothing heavy is imported: Tab has to answer at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files

Offer = tuple[str, str]  # value, what it is


def targets(incomplete: str) -> list[Offer]:
    """Names of targets, those of plugins included."""
    from condensec.hardware.target import all_targets

    return _begin(((t.name, t.summary) for t in all_targets().values()), incomplete)


def criteria(incomplete: str) -> list[Offer]:
    """Names of criteria, read off their files: importing them takes longer than a Tab may."""
    found = []
    for path in sorted(files("condensec.passes.criteria").iterdir(), key=lambda p: p.name):
        if path.name.endswith(".py"):
            found += re.findall(r'^@criterion\(\s*"([\w-]+)"', path.read_text(encoding="utf-8"), re.MULTILINE)
    return _begin(((name, "") for name in sorted({*found, "auto"})), incomplete)


def metrics(incomplete: str) -> list[Offer]:
    """Names of metrics."""
    from condensec.metrics import METRICS

    return _begin(((name, metric.label) for name, metric in METRICS.items()), incomplete)


def heal(incomplete: str) -> list[Offer]:
    """How to heal, with the usual amounts."""
    known = (
        ("auto", "closed form, then at most 2 minutes by gradient"),
        ("closed-form", "least squares, layer by layer"),
        ("epochs=3", "passes over the training samples"),
        ("minutes=10", "of training"),
        ("off", "no healing"),
    )
    return _begin(known, incomplete)


def quantize(incomplete: str) -> list[Offer]:
    """Precisions."""
    from condensec.settings import QUANTIZATIONS

    return _begin(((name, "") for name in QUANTIZATIONS), incomplete)


def calibrate(incomplete: str) -> list[Offer]:
    """How to find ranges of activations."""
    return _begin(((name, "") for name in ("auto", "entropy", "minmax", "percentile")), incomplete)


def patterns(incomplete: str) -> list[Offer]:
    """What may be cut; goes on after a comma."""
    from condensec.specs import UNIT_PATTERNS

    return _listed([*UNIT_PATTERNS, "unstructured=0.9", "2:4"], incomplete)


def augment(incomplete: str) -> list[Offer]:
    """Steps of augmentation; goes on after a comma."""
    return _listed(["flip", "crop=4"], incomplete)


def loss(incomplete: str) -> list[Offer]:
    """What healing compares; goes on after a comma."""
    from condensec.specs import LOSSES

    return _listed([f"{name}=" for name in LOSSES], incomplete)


def budget(incomplete: str) -> list[Offer]:
    """Usual budgets."""
    from condensec.specs import BUDGET_KINDS

    return _begin(((f"{kind}<=0.5x", "") for kind in BUDGET_KINDS), incomplete)


def schemas(incomplete: str) -> list[Offer]:
    """Names of JSON schemas."""
    from condensec.schemas import names

    return _begin(((name, "") for name in names()), incomplete)


def shells(incomplete: str) -> list[Offer]:
    """Shells that can be set up."""
    return _begin(((name, "") for name in ("bash", "zsh", "fish")), incomplete)


def _begin(offers: Iterator[Offer] | tuple[Offer, ...], incomplete: str) -> list[Offer]:
    return [offer for offer in offers if offer[0].startswith(incomplete)]


def _listed(known: list[str], incomplete: str) -> list[Offer]:
    """The next item of a comma-separated list."""
    done, comma, last = incomplete.rpartition(",")
    return [(done + comma + item, "") for item in known if item.startswith(last) and item not in done]
