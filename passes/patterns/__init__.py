"""Patterns of zeros: which weights of a cut model become zero, and what the others become.

One file a pattern, registered by being there:

    @pattern("unstructured")
    def unstructured(layers: Sequence[Layer], asked: Sparsity) -> dict[str, Zeros]: ...
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.errors import ConfigError
from condensec.passes.contraction import Place
from condensec.passes.second_moments import Moments
from condensec.sparsity import Sparsity

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """One weight, and what is known of its inputs.

    Attributes:
        place: where it is contracted.
        weight: its value.
        moments: of the inputs; None without data.
        effect: of the energy it loses on the outputs, see `condensec.passes.effects`; 1 where not measured.
    """

    place: Place
    weight: Array
    moments: Moments | None = None
    effect: float = 1.0

    @property
    def matrix(self) -> Array:
        """``[groups, rows, columns]``."""
        return self.place.matrix(self.weight)

    @property
    def squares(self) -> FloatArray | None:
        """Mean squares of the columns' inputs ``[groups, columns]``."""
        return None if self.moments is None else self.moments.squares(self.place)

    @property
    def full(self) -> FloatArray | None:
        """Second moments of the columns' inputs ``[groups, columns, columns]``."""
        return None if self.moments is None else self.moments.full(self.place)


@dataclass(frozen=True)
class Zeros:
    """What a pattern makes of one weight.

    Attributes:
        mask: 1 where a weight stays, in the weight's shape.
        weight: the new value; zero wherever the mask is.
        damage: share of the layer's output energy that changes.
    """

    mask: npt.NDArray[np.bool_]
    weight: Array
    damage: float


Pattern = Callable[[Sequence[Layer], Sparsity], dict[str, Zeros]]
_PATTERNS: dict[str, Pattern] = {}


def pattern(name: str) -> Callable[[Pattern], Pattern]:
    """Register a pattern.

    Raises:
        ValueError: the name is taken.
    """

    def register(function: Pattern) -> Pattern:
        if name in _PATTERNS:
            raise ValueError(f"the pattern '{name}' is registered twice")
        _PATTERNS[name] = function
        return function

    return register


def get(name: str) -> Pattern:
    """The pattern of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in _PATTERNS:
        for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
            importlib.import_module(f"{__name__}.{module}")
    if name not in _PATTERNS:
        raise ConfigError(f"there is no pattern '{name}'", hint=f"known: {', '.join(sorted(_PATTERNS))}")
    return _PATTERNS[name]


def finished(layer: Layer, stay: npt.NDArray[np.bool_], matrix: Array, moment: FloatArray | None) -> Zeros:
    """The result of a layer from its matrix view."""
    from condensec.passes.surgeon import damage

    new = np.where(stay, matrix, 0.0).astype(layer.weight.dtype)
    place = layer.place
    return Zeros(place.array(stay), place.array(new), damage(layer.matrix, new, moment))


def violations(place: Place, array: Array, n: int, m: int) -> int:
    """Groups of ``m`` consecutive weights along the contraction with more than ``n`` that aren't zero."""
    matrix = place.matrix(array)
    groups = matrix.reshape(*matrix.shape[:2], -1, m)
    return int((np.count_nonzero(groups, axis=-1) > n).sum())


def torn(place: Place, array: Array, width: int) -> int:
    """Blocks of ``width`` consecutive weights along the contraction that are zero in part."""
    matrix = place.matrix(array)
    count = np.count_nonzero(matrix.reshape(*matrix.shape[:2], -1, width), axis=-1)
    return int(((count > 0) & (count < width)).sum())


__all__ = ["Layer", "Pattern", "Zeros", "finished", "get", "pattern", "torn", "violations"]
