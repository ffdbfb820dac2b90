"""What may be cut: ``channels,heads,2:4``."""

from __future__ import annotations

from condensec.errors import ConfigError
from condensec.sparsity import parse_sparsity
from condensec.specs.nearest import nearest

LAYERS = "layers"
NOTHING = "none"  # no unit goes: for a stack of zeros or of quantization alone
KIND_PATTERNS: dict[str, tuple[str, ...]] = {  # kind of group in plan.json -> patterns that let it go
    "channel": ("channels",),
    "head": ("heads",),
    "kv_head": ("heads", "kv_heads"),
    "head_dim": ("heads", "head_dims"),
    "neuron": ("neurons",),
    "hidden": ("neurons", "hidden"),
    "expert": ("neurons", "experts"),
    "rnn_unit": ("neurons", "rnn_units"),
}
UNIT_PATTERNS = (
    *("channels", "heads", "neurons"),
    *("kv_heads", "head_dims", "hidden", "experts", "rnn_units"),
    LAYERS,
)
DEFAULT_PATTERNS = ("channels", "heads", "neurons")  # a whole layer goes only where that was asked for


def parse_patterns(text: str) -> tuple[str, ...]:
    """A comma-separated list of what may be cut, and at most one pattern of zeros; ``none`` cuts nothing.

    ``heads`` takes groups of grouped-query attention and features of heads along, ``neurons`` all units
    that aren't channels or heads; the narrower names are for one kind alone.

    Raises:
        ConfigError: an unknown pattern, or two patterns of zeros, or ``none`` beside units.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    zeros = []
    for name in names:
        found = parse_sparsity(name)
        if found is not None:
            zeros.append(found)
        elif name == NOTHING:
            if set(names) & set(UNIT_PATTERNS):
                raise ConfigError("--patterns: 'none' and units exclude each other", hint="leave one out")
        elif name not in UNIT_PATTERNS:
            raise ConfigError(
                f"--patterns: unknown pattern '{name}'",
                hint=nearest(name, (*UNIT_PATTERNS, "unstructured=0.9", "2:4"), "known"),
            )
    if len(zeros) > 1:
        raise ConfigError(f"--patterns: {zeros[0]} and {zeros[1]} exclude each other", hint="use one of them")
    return names
