"""The language of zeros: ``unstructured=0.9``, ``unstructured=0.9:wanda``, ``2:4``, ``1x4=0.5``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from condensec.errors import ConfigError

METHODS = ("obs", "wanda", "magnitude", "layerwise", "sensitivity", "erk")
_SHARE = re.compile(r"unstructured=([0-9.]+)(?::([a-z]+))?")
_BLOCKS = re.compile(r"1x([0-9]{1,4})=([0-9.]+)(?::([a-z]+))?")
_GROUP = re.compile(r"([0-9]{1,4}):([0-9]{1,4})(?::([a-z]+))?")


@dataclass(frozen=True)
class Sparsity:
    """Zeros that were asked for.

    Attributes:
        name: the pattern's file in `condensec.passes.patterns`: ``unstructured``, ``n_m`` or ``blocks``.
        share: of the weights that become zero, in (0, 1).
        n: of every ``m`` consecutive weights along the contraction at most ``n`` stay; 0 for unstructured.
        m: see ``n``.
        width: of blocks that go as one, else 0.
        method: one of `METHODS`, or empty: with data the better of obs and sensitivity (obs for N:M), else
            magnitude.
    """

    name: str
    share: float
    n: int = 0
    m: int = 0
    method: str = ""
    width: int = 0

    @property
    def unit(self) -> int:
        """Of so many input channels a weight needs a multiple."""
        return self.m or self.width or 1

    def __str__(self) -> str:
        name = f"1x{self.width}" if self.width else self.name
        text = f"{self.n}:{self.m}" if self.m else f"{name}={self.share:g}"
        return f"{text}:{self.method}" if self.method else text


def parse_sparsity(text: str) -> Sparsity | None:
    """A pattern of zeros, or None where the text is none.

    Raises:
        ConfigError: it is one that can't be.
    """
    share, group = _SHARE.fullmatch(text), _GROUP.fullmatch(text)
    blocks = _BLOCKS.fullmatch(text)
    if blocks is not None:
        found = _unstructured(text, blocks.group(2), _known(text, blocks.group(3) or ""))
        if int(blocks.group(1)) < 2:
            raise ConfigError(f"--patterns '{text}': a block has two weights or more", hint="write 1x4=0.5")
        return replace(found, name="blocks", width=int(blocks.group(1)))
    if share is None and group is None:
        if text.partition("=")[0] == "unstructured":
            raise ConfigError(
                f"--patterns '{text}' can't be read", hint="write for instance unstructured=0.9"
            )
        return None
    method = _known(text, (share.group(2) if share else group.group(3) if group else "") or "")
    if share is not None:
        return _unstructured(text, share.group(1), method)
    assert group is not None
    n, m = int(group.group(1)), int(group.group(2))
    if not 0 < n < m:
        raise ConfigError(
            f"--patterns '{text}': of m weights n stay, 0 < n < m", hint="write for instance 2:4"
        )
    if method in ("layerwise", "sensitivity", "erk"):
        raise ConfigError(f"--patterns '{text}': N:M is the same share in every layer", hint="leave it out")
    return Sparsity("n_m", 1 - n / m, n, m, method)


def _known(text: str, method: str) -> str:
    if method and method not in METHODS:
        raise ConfigError(
            f"--patterns '{text}': unknown method '{method}'", hint=f"known: {', '.join(METHODS)}"
        )
    return method


def _unstructured(text: str, number: str, method: str) -> Sparsity:
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise ConfigError(
            f"--patterns '{text}': the share of zeros lies between 0 and 1",
            hint="write for instance unstructured=0.9",
        )
    return Sparsity("unstructured", value, method=method)


def asked(patterns: tuple[str, ...]) -> Sparsity | None:
    """The one pattern of zeros among ``--patterns``, if any."""
    return next((found for found in map(parse_sparsity, patterns) if found is not None), None)
