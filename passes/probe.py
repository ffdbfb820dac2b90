"""Find shapes by running the model: sizes of inputs that leave them open, and values nothing can infer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from condensec.errors import CondensecError
from condensec.runner import Session

Array = np.ndarray[Any, Any]
# Sizes of images models are usually made for; text-line recognizers fix the height.
IMAGES = (
    (224, 224),
    (48, 192),
    (48, 320),
    (256, 256),
    (320, 320),
    (32, 100),
    (96, 96),
    (64, 64),
    (32, 32),
    (640, 640),
)
LENGTHS = (16, 128, 77, 32, 64, 512)  # tokens
WAVES = (16000, 1000, 400, 100)  # samples or frames
RUN_BYTES = 1_000_000_000  # weights of models that are run only to learn a shape


def probe_shapes(model: ir.Model, batch: int = 1) -> dict[str, tuple[int, ...]] | None:
    """Input sizes at which a model runs, where it leaves them open; None if none was found.

    Args:
        model: any model; it's run at most a few times.
        batch: size of a dynamic first axis.
    """
    try:
        session = Session(model, optimize=False)
    except CondensecError:
        return None
    for shapes in itertools.islice(_candidates(model, batch), 24):
        try:
            session.run(feeds(model, shapes))
        except CondensecError:
            continue
        return shapes
    return None


def _candidates(model: ir.Model, batch: int) -> Iterator[dict[str, tuple[int, ...]]]:
    for images, length, waves in [
        *((image, LENGTHS[0], WAVES[0]) for image in IMAGES),
        *((IMAGES[0], length, WAVES[0]) for length in LENGTHS[1:]),
        *((IMAGES[0], LENGTHS[0], wave) for wave in WAVES[1:]),
    ]:
        yield {v.name or "": _sizes(v, batch, images, length, waves) for v in model.graph.inputs}


def _sizes(value: ir.Value, batch: int, image: tuple[int, int], length: int, wave: int) -> tuple[int, ...]:
    if value.shape is None:
        return ()
    rank, sizes = len(value.shape), []
    whole = value.dtype is not None and not value.dtype.is_floating_point()
    for position, dim in enumerate(value.shape.dims):
        if isinstance(dim, int) and dim > 0:
            sizes.append(dim)
        elif position == 0:
            sizes.append(batch)
        elif rank == 4 and not whole:
            last = value.shape.dims[-1]
            channels_last = isinstance(last, int) and last in (1, 3)
            at = position - (1 if channels_last else 2)
            sizes.append(3 if at < 0 else image[min(at, 1)])
        else:
            sizes.append(wave if rank == 2 and not whole else length)
    return tuple(sizes)


def feeds(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Inputs that most models take: small normal numbers, token 1, masks of ones."""
    rng = np.random.default_rng(0)
    found: dict[str, Array] = {}
    for value in model.graph.inputs:
        dtype = (value.dtype or ir.DataType.FLOAT).numpy()
        shape = shapes[value.name or ""]
        if dtype.kind in "iub":
            found[value.name or ""] = np.ones(shape, dtype)
        else:
            found[value.name or ""] = rng.standard_normal(shape).astype(dtype)
    return found


def run_for_shapes(
    model: ir.Model, inputs: Mapping[str, tuple[int, ...]], names: list[str]
) -> dict[str, tuple[int, ...]]:
    """Sizes of some values, from one run at the sample sizes. Empty where the model doesn't run."""
    weights = sum(
        v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None
    )
    if weights > RUN_BYTES:
        return {}
    try:
        session = Session(model, optimize=False, extra_outputs=names)
        return {name: array.shape for name, array in session.run(feeds(model, inputs), names).items()}
    except CondensecError:
        return {}
