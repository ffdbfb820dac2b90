"""Made-up inputs for a model that came without data. Good for fidelity to the original, not for accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from condensec.data.side import check_given, copies, filled
from condensec.data.types import Array, Samples, Signature, TensorSpec
from condensec.errors import DataError

IMAGE_SIDE = 224  # pixels, for dynamic height and width
LENGTH = 16  # for every other dynamic dim
RATE = 16_000  # Hz
_COARSE = 8  # cells a side of an image's slowly changing part


def synthetic(
    signature: Signature,
    *,
    seed: int = 0,
    count: int = 64,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    values: Mapping[str, Array] | None = None,
) -> Samples:
    """Seeded samples that fit a model.

    Floats are standard normal; images (rank 4, 1, 3 or 4 channels) are half slowly changing and half noise,
    since noise alone averages out in a pooling network; bytes are uniform; indices stay inside their table;
    masks are ones; booleans are True; inputs without a sample axis are the same for all samples, scalars one
    (a sampling rate 16,000), others zero. Dynamic dims: 224 for an image's height and width, 16 otherwise;
    dims of one name get one size.

    Args:
        signature: the model's interface.
        seed: of all values.
        count: number of samples.
        shapes: input name -> whole shape, axis 0 included (and not looked at), for dynamic dims.
        values: input name -> its value, the same in all samples; a single number fills the input.

    Raises:
        DataError: a shape is given for no input or doesn't fit, or an input's shape is unknown.
    """
    shapes = shapes or {}
    names = [spec.name for spec in signature.inputs]
    check_shapes(signature, shapes)
    check_given(values or {}, names)
    rng = np.random.default_rng(seed)
    sizes: dict[str, int] = {}
    for spec in signature.inputs:
        _collect_sizes(spec, shapes.get(spec.name), sizes, 0 if spec.name in signature.sides else 1)
    inputs = {
        spec.name: _side(spec, shapes.get(spec.name), sizes, count)
        if spec.name in signature.sides
        else _values(spec, (count, *_dims(spec, shapes.get(spec.name), sizes)), rng)
        for spec in signature.inputs
    }
    for spec in signature.inputs:
        if values and spec.name in values:
            value = filled(spec.name, spec.dtype, values[spec.name], inputs[spec.name].shape[1:])
            inputs[spec.name] = copies(value, count)
    return Samples(inputs, synthetic=True, source="synthetic", count=count)


def check_shapes(signature: Signature, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Shapes that the user gave fit the inputs.

    Raises:
        DataError: one doesn't, or there is no such input.
    """
    names = [spec.name for spec in signature.inputs]
    for name in shapes:
        if name not in names:
            raise DataError(f"--shape {name}: no such input", hint=f"the inputs are {', '.join(names)}")
    for spec in signature.inputs:
        _collect_sizes(spec, shapes.get(spec.name), {}, 0 if spec.name in signature.sides else 1)


def _collect_sizes(
    spec: TensorSpec, given: tuple[int, ...] | None, sizes: dict[str, int], first: int
) -> None:
    """Sizes of named dims; ``first`` = the first axis that has to fit."""
    if given is None:
        return
    fits = not spec.rank_known or (
        len(given) == len(spec.shape)
        and all(
            not isinstance(w, int) or w == g for w, g in zip(spec.shape[first:], given[first:], strict=True)
        )
    )
    if not fits or len(given) < first or any(d < 1 for d in given):
        text = "x".join(map(str, given))
        raise DataError(
            f"shape {text} doesn't fit the input {spec}", node=spec.name, hint="give it batch included"
        )
    for want, have in zip(spec.shape, given, strict=False):
        if isinstance(want, str):
            sizes.setdefault(want, have)


def _dims(spec: TensorSpec, given: tuple[int, ...] | None, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """All dims but axis 0."""
    if given is not None:
        return given[1:]
    if not spec.rank_known:
        raise DataError(
            f"the model doesn't state the shape of input '{spec.name}'",
            node=spec.name,
            hint=f"give it: --shape {spec.name}=1x3x224x224, or give --data",
        )
    default = IMAGE_SIDE if is_image(spec) else LENGTH
    return tuple(d if isinstance(d, int) else _size(d, sizes, default) for d in spec.shape[1:])


def _side(spec: TensorSpec, given: tuple[int, ...] | None, sizes: Mapping[str, int], count: int) -> Array:
    """One copy a sample of an input without a sample axis: a first state is zero, a scalar one.

    A scalar that is called like a sampling rate is 16,000 Hz. Dynamic dims are one unless they're named.
    """
    if not spec.shape:
        rate = spec.dtype.kind in "iuf" and spec.name.lower() in ("sr", "sample_rate", "sampling_rate")
        return copies(np.asarray(RATE if rate else 1).astype(spec.dtype), count)
    dims = given or tuple(d if isinstance(d, int) else sizes.get(d or "", 1) for d in spec.shape)
    return copies(np.zeros(dims, spec.dtype), count)


def _size(dim: str | None, sizes: Mapping[str, int], default: int) -> int:
    """Size of a dynamic dim; ``past + sequence`` is the sum of its parts, as exporters write it."""
    if dim is None:
        return default
    if dim in sizes:
        return sizes[dim]
    parts = [part.strip() for part in dim.split("+")]
    if len(parts) > 1:
        return sum(int(p) if p.isdigit() else _size(p, sizes, default) for p in parts)
    return default


def is_image(spec: TensorSpec) -> bool:
    """Whether an input looks like images ``[N, C, H, W]``: rank 4, 1, 3 or 4 channels, no cache."""
    return len(spec.shape) == 4 and spec.shape[1] in (1, 3, 4) and "past" not in spec.name.lower()


def _values(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    dtype = spec.dtype
    if "mask" in spec.name.lower() and dtype.kind in "iuf":
        return np.ones(shape, dtype)
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        return _integers(spec, shape, rng)
    if is_image(spec):
        return _images(shape, rng).astype(dtype)
    return rng.standard_normal(shape, np.float32).astype(dtype)


def _integers(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if spec.bound is not None:
        high = max(1, spec.bound)
    elif spec.dtype.itemsize == 1:
        high = int(np.iinfo(spec.dtype).max) + 1
    else:
        high = 2  # nothing is known of what they mean: 0 and 1 are nearly always valid
    if "position" in spec.name.lower() and len(shape) > 1:
        return np.broadcast_to(np.arange(shape[-1]) % high, shape).astype(spec.dtype)
    return rng.integers(0, high, shape).astype(spec.dtype)


def _images(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Half the variance varies over some `_COARSE` cells a side, half from pixel to pixel."""
    n, channels, height, width = shape
    coarse = rng.standard_normal((n, channels, _COARSE, _COARSE), np.float32)
    rows = np.arange(height) * _COARSE // height
    columns = np.arange(width) * _COARSE // width
    noise = rng.standard_normal(shape, np.float32)
    noise += coarse[:, :, rows[:, None], columns[None, :]]
    noise *= np.float32(0.5**0.5)
    return noise
