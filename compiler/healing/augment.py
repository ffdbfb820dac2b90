"""Augmentation: training samples changed at random, batch by batch, in the user's own process.

A user's function may need any library, and the worker's environment has numpy only; so samples are changed
here, and the teacher answers for the changed ones. The random numbers depend on the seed, the view (one pass
over the samples) and the place in it only, so an interrupted heal goes on with the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from condensec.errors import CondensecError, ConfigError, DataError
from condensec.specs import parse_augment

if TYPE_CHECKING:
    from condensec.data import Samples

Arrays = dict[str, np.ndarray]
Function = Callable[[Arrays, np.random.Generator], Mapping[str, Any]]
Spec = str | Function
LABELS = "labels"  # among the arrays, as in a file of samples
_PIXELS = (1, 3, 4)  # channels of an image, where they come last


@dataclass(frozen=True)
class Step:
    """One change.

    Attributes:
        name: as the user wrote it.
        function: (batch, rng) -> batch; arrays by input name, and `labels` where there are any.
    """

    name: str
    function: Function


@dataclass(frozen=True)
class Augmenter:
    """All steps, in order.

    Attributes:
        steps: what is done.
        seed: of the random numbers.
        batch: samples that a function gets at a time.
    """

    steps: tuple[Step, ...]
    seed: int
    batch: int

    def __call__(self, samples: Samples, view: int, start: int) -> Samples:
        """Changed samples.

        Args:
            samples: consecutive ones.
            view: number of the pass.
            start: place of the first sample in it.

        Raises:
            DataError: a step failed or gave something that doesn't fit.
        """
        parts = []
        for low in range(0, len(samples), self.batch):
            part = samples.subset(np.arange(low, min(low + self.batch, len(samples))))
            batch = {name: np.array(array) for name, array in part.inputs.items()}
            if part.labels is not None and LABELS not in batch:
                batch[LABELS] = np.array(part.labels)
            for i, step in enumerate(self.steps):
                rng = np.random.default_rng((self.seed, view, start + low, i))
                batch = _applied(step, batch, rng)
            parts.append(batch)
        joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        labels = None if samples.labels is None else joined.get(LABELS, samples.labels)
        return replace(samples, inputs={name: joined[name] for name in samples.inputs}, labels=labels)


def resolve(spec: Spec | None, samples: Samples, *, seed: int, batch: int) -> Augmenter | None:
    """What to do with training samples; tried on a few of them.

    Args:
        spec: `flip`, `crop=N`, `module:callable`, several of them joined by commas, or a function; None or
            "" = nothing.
        samples: the training samples.
        seed: of the random numbers.
        batch: samples that a function gets at a time.

    Raises:
        ConfigError: no such step, module or callable, or a built-in one that these samples aren't safe with.
        DataError: a step failed or gave something that doesn't fit.
    """
    if spec is None or spec == "":
        return None
    if callable(spec):
        steps = [Step(getattr(spec, "__qualname__", type(spec).__name__), spec)]
    else:
        steps = [_step(part, samples) for part in parse_augment(spec)]
    found = Augmenter(tuple(steps), seed, batch)
    found(samples.first(min(batch, 4)), 0, 0)
    return found


def _step(text: str, samples: Samples) -> Step:
    from condensec.data.load import import_callable

    if ":" in text:
        return Step(text, import_callable(text, "--augment"))
    _check_images(text, samples)
    if text == "flip":
        return Step(text, flip)
    margin = int(text.partition("=")[2])
    for name, array in samples.inputs.items():
        if margin >= min(array.shape[2:]):
            raise ConfigError(f"--augment {text}: input '{name}' is only {array.shape[2]}x{array.shape[3]}")
    return Step(text, crop(margin))


def _check_images(text: str, samples: Samples) -> None:
    """The built-in steps move pixels about: every input has to be an image, and no label a place in one."""
    hint = "write your own step as module:callable"
    for name, array in samples.inputs.items():
        shape = array.shape
        what = "x".join(map(str, shape[1:]))
        if len(shape) != 4 or array.dtype.kind not in "fu":
            raise ConfigError(f"--augment {text}: input '{name}' ({what}) is no [N,C,H,W] image", hint=hint)
        if shape[3] in _PIXELS and shape[1] not in _PIXELS:
            raise ConfigError(f"--augment {text}: input '{name}' ({what}) has its channels last", hint=hint)
    if samples.labels is not None and samples.labels.ndim > 1:
        raise ConfigError(f"--augment {text}: the labels aren't one number a sample", hint=hint)


def flip(batch: Arrays, rng: np.random.Generator) -> Arrays:
    """Mirror every other [C, H, W] image left to right."""
    images = {name: array for name, array in batch.items() if name != LABELS}
    chosen = rng.random(len(next(iter(images.values())))) < 0.5
    mirrored = {
        name: np.where(chosen[:, None, None, None], array[..., ::-1], array) for name, array in images.items()
    }
    return {**batch, **mirrored}


def crop(margin: int) -> Function:
    """Shift every image by up to `margin` pixels each way; what comes in from outside is its reflection."""

    def shifted(batch: Arrays, rng: np.random.Generator) -> Arrays:
        images = {name: array for name, array in batch.items() if name != LABELS}
        count = len(next(iter(images.values())))
        top, left = rng.integers(0, 2 * margin + 1, (2, count))
        return {**batch, **{name: _shifted(array, margin, top, left) for name, array in images.items()}}

    return shifted


def _shifted(array: np.ndarray, margin: int, top: np.ndarray, left: np.ndarray) -> np.ndarray:
    height, width = array.shape[2:]
    wide = np.pad(array, ((0, 0), (0, 0), (margin, margin), (margin, margin)), mode="reflect")
    rows = (top[:, None] + np.arange(height))[:, None, :, None]
    columns = (left[:, None] + np.arange(width))[:, None, None, :]
    sample = np.arange(len(array))[:, None, None, None]
    channel = np.arange(array.shape[1])[None, :, None, None]
    taken: np.ndarray = wide[sample, channel, rows, columns]
    return taken


def _applied(step: Step, batch: Arrays, rng: np.random.Generator) -> Arrays:
    try:
        given = step.function({name: array.copy() for name, array in batch.items()}, rng)
    except CondensecError:
        raise
    except Exception as error:  # the user's code may raise anything
        text = " ".join(str(error).split())
        raise DataError(
            f"augmentation {step.name} failed: {type(error).__name__}: {text}", hint="run it on one batch"
        ) from error
    if not isinstance(given, Mapping):
        raise DataError(f"augmentation {step.name} gave {type(given).__name__}, not a dict of arrays")
    odd = [str(name) for name in given if name not in batch]
    lacking = [name for name in batch if name not in given and name != LABELS]
    if odd or lacking:
        what = f"an array '{odd[0]}' it wasn't given" if odd else f"no array '{lacking[0]}'"
        raise DataError(f"augmentation {step.name} gave {what}")
    return {name: _fitting(step, name, given.get(name, old), old) for name, old in batch.items()}


def _fitting(step: Step, name: str, value: Any, old: np.ndarray) -> np.ndarray:
    """The new array in the old one's type.

    Raises:
        DataError: it has another shape or kind, or holds NaN or infinity.
    """
    new = np.asarray(value)
    if new.shape != old.shape:
        raise DataError(
            f"augmentation {step.name} gave '{name}' of shape {new.shape}, it was given {old.shape}"
        )
    if new.dtype.kind != old.dtype.kind:
        raise DataError(f"augmentation {step.name} gave '{name}' as {new.dtype}, it was given {old.dtype}")
    if new.dtype.kind == "f" and not np.isfinite(new).all():
        raise DataError(f"augmentation {step.name} gave NaN or infinity in '{name}'")
    return new.astype(old.dtype, copy=False)
