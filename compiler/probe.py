"""Input shapes at which a model runs, for models with dynamic dims that came without data.

A recogniser that wants lines of 48 pixels states "any height" like everybody else. So shapes that are
common in practice are tried until one runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from condensec.data import Signature, TensorSpec, synthetic
from condensec.data.side import check_given
from condensec.data.synthetic import check_shapes, is_image
from condensec.data.types import Array
from condensec.errors import CondensecError, DataError, ModelError

if TYPE_CHECKING:
    from condensec.serialized import ModelSource

Shape = tuple[int, ...]

# height and width of images, length of everything else; the first ones are `synthetic`'s own defaults
_SIDES = (
    (224, 224), (48, 320), (32, 320), (640, 640), (256, 256), (512, 512), (320, 320), (299, 299), (128, 128),
    (96, 96), (64, 64), (32, 32), (28, 28),
)  # fmt: skip
_LENGTHS = (16, 128, 1, 64, 512, 16_000)


def runnable_shapes(
    model: ModelSource,
    signature: Signature,
    given: Mapping[str, Shape] | None = None,
    values: Mapping[str, Array] | None = None,
) -> dict[str, Shape]:
    """Shapes by input name at which the model runs; only what the model and the user leave open is tried.

    Args:
        model: the model in any form.
        signature: its interface.
        given: shapes the user gave.
        values: values the user gave, for inputs that are the same in every sample.

    Returns:
        ``given``, and a shape for every input with a dynamic dim besides the batch.

    Raises:
        ModelError: onnxruntime can't load the model.
        DataError: it runs at none of the shapes tried.
    """
    from condensec.runner import Session

    given = dict(given or {})
    check_given(values or {}, [spec.name for spec in signature.inputs])
    check_shapes(signature, given)
    settled = {*given, *(name for name, value in (values or {}).items() if value.ndim), *signature.sides}
    open_inputs = [s for s in signature.inputs if s.name not in settled and _is_open(s)]
    if not open_inputs:
        return given
    session = Session(model)
    failure: CondensecError | None = None
    tried = 0
    for tried, guess in enumerate(_guesses(open_inputs), 1):  # noqa: B007
        shapes = {**given, **guess}
        try:
            samples = synthetic(signature, count=session.batch_size or 1, shapes=shapes, values=values)
            session.run_samples(samples)
        except ModelError:
            raise
        except CondensecError as error:
            failure = failure or error
            continue
        return {spec.name: samples.inputs[spec.name].shape for spec in open_inputs} | given
    names = ", ".join(spec.name for spec in open_inputs)
    raise DataError(
        f"the model runs at none of {tried} usual shapes of its input {names}"
        + (f": {failure.message}" if failure else ""),
        node=open_inputs[0].name,
        hint=f"give the shape (--shape {open_inputs[0].name}=1x...), or give --data",
    )


def _is_open(spec: TensorSpec) -> bool:
    return spec.rank_known and any(not isinstance(dim, int) for dim in spec.shape[1:])


def _guesses(specs: list[TensorSpec]) -> Iterator[dict[str, Shape]]:
    """Shapes for all open inputs at once: the same side for all images, the same length for the rest."""
    images = any(is_image(spec) for spec in specs)
    others = any(not is_image(spec) for spec in specs)
    if not others and images:
        sides: Iterator[tuple[tuple[int, int], int]] = ((side, _LENGTHS[0]) for side in _SIDES)
    elif not images:
        yield {}  # what `synthetic` does by itself: dims of one name alike, sums of dims
        sides = ((_SIDES[0], length) for length in _LENGTHS)
    else:
        yield {}
        sides = iter(itertools.product(_SIDES, _LENGTHS))
    for side, length in sides:
        yield {spec.name: _filled(spec, side, length) for spec in specs}


def _filled(spec: TensorSpec, side: tuple[int, int], length: int) -> Shape:
    defaults = (1, length, *side) if is_image(spec) else (1, *(length for _ in spec.shape[1:]))
    batch = spec.shape[0] if isinstance(spec.shape[0], int) else 1
    rest = (
        dim if isinstance(dim, int) else default
        for dim, default in zip(spec.shape[1:], defaults[1:], strict=True)
    )
    return (batch, *rest)
