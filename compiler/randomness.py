"""Operators of the standard that draw random numbers whenever they run."""

from __future__ import annotations

RANDOM = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)
