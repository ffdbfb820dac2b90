"""Do these arrays fit this model? Every misfit is a `DataError` that names the array."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np

from condensec.data.side import check_given, copies, filled
from condensec.data.types import CHUNK, Array, Samples, Signature, TensorSpec, forget
from condensec.errors import DataError

LABELS = "labels"


def fit(
    arrays: Mapping[str, Array],
    signature: Signature,
    source: str,
    synthetic: bool = False,
    values: Mapping[str, Array] | None = None,
) -> Samples:
    """Check arrays against a model's interface, convert what can be converted safely, sort them by role.

    Arrays named like graph inputs are inputs; ``labels`` are labels; those named like graph outputs are
    outputs; others with one row a sample are extras, unless their name is nearly one of these: then it's
    an error, since a slip of the pen must not silently cost the labels.

    Args:
        arrays: by name; axis 0 = sample.
        signature: the model's interface.
        source: where they come from, for messages and the report.
        synthetic: they're made up.
        values: of inputs that are the same for all samples; they win over arrays.

    Raises:
        DataError: an array is missing, empty, of the wrong dtype or shape, or holds NaN or infinity.
    """
    given = dict(values or {})
    check_given(given, [spec.name for spec in signature.inputs])
    arrays = {**arrays, **{name: value for name, value in given.items() if name not in arrays}}
    _check_names(arrays, signature, source)
    notes: list[str] = []
    inputs, count = _inputs(arrays, given, signature, source, notes)
    outputs, extras = {}, {}
    labels: Array | None = None
    by_name = {spec.name: spec for spec in signature.outputs}
    for name, array in arrays.items():
        if name in inputs:
            continue
        where = f"{source}: array '{name}'"
        if name == LABELS:
            labels = _checked_labels(np.asarray(array), signature, source, notes)
            _check_counts({signature.inputs[0].name: count, name: len(labels)}, source)
        elif name in by_name:
            outputs[name] = _checked(array, by_name[name], where, notes)
            _check_counts({signature.inputs[0].name: count, name: len(outputs[name])}, source)
        elif np.ndim(array) and len(array) == count and not np.asarray(array).dtype.hasobject:
            extras[name] = array
        else:
            notes.append(f"{where} isn't used: it's neither an input, an output nor labels")
    return Samples(inputs, labels, outputs or None, synthetic, source, extras, tuple(notes))


def _inputs(
    arrays: Mapping[str, Array],
    values: Mapping[str, Array],
    signature: Signature,
    source: str,
    notes: list[str],
) -> tuple[dict[str, Array], int]:
    """Every input's array, in the model's order, and how many samples there are."""
    sides = signature.sides
    inputs = {
        spec.name: _checked(arrays[spec.name], spec, f"{source}: array '{spec.name}'", notes)
        for spec in signature.inputs
        if spec.name not in sides and spec.name not in values
    }
    if not inputs:
        raise DataError(f"{source}: no input has a sample axis", hint="give at least one array of samples")
    count = _check_counts({name: len(array) for name, array in inputs.items()}, source)
    _check_shared_dims(inputs, signature, source)
    for spec in signature.inputs:
        value = values.get(spec.name)
        if value is not None:
            dims = spec.shape if spec.name in sides else spec.shape[1:]
            inputs[spec.name] = copies(filled(spec.name, spec.dtype, value, _settled(dims, value)), count)
        elif spec.name in sides:
            where = f"{source}: array '{spec.name}'"
            inputs[spec.name] = _one_for_all(np.asarray(arrays[spec.name]), spec, where, count, notes)
    return {spec.name: inputs[spec.name] for spec in signature.inputs}, count


def _check_names(arrays: Mapping[str, Array], signature: Signature, source: str) -> None:
    wanted = [spec.name for spec in signature.inputs]
    missing = [name for name in wanted if name not in arrays]
    known = [*wanted, LABELS, *(spec.name for spec in signature.outputs)]
    unknown = [name for name in arrays if name not in known]
    if missing:
        near = difflib.get_close_matches(missing[0], unknown, 1, 0.6)
        renaming = f"rename '{near[0]}' to '{missing[0]}'" if near else "name the arrays like the inputs"
        if missing[0] in signature.sides and not near:
            renaming = f"it's the same for all samples: give it with --input {missing[0]}=VALUE"
        raise DataError(
            f"{source}: no array for input '{missing[0]}' (the model's inputs: {', '.join(wanted)};"
            f" found: {', '.join(arrays) or 'nothing'})",
            node=missing[0],
            hint=renaming,
        )
    for name in unknown:
        free = [n for n in known if n not in arrays]
        near = difflib.get_close_matches(name, free, 1, 0.75)
        if near:
            raise DataError(
                f"{source}: array '{name}' is neither an input, an output nor '{LABELS}'",
                node=name,
                hint=f"rename it to '{near[0]}', or leave it out",
            )


def _settled(dims: tuple[int | str | None, ...], value: Array) -> tuple[int, ...]:
    """Fixed dims; the value's own where they're dynamic, or one."""
    own = value.shape if value.ndim == len(dims) else (1,) * len(dims)
    return tuple(dim if isinstance(dim, int) else size for dim, size in zip(dims, own, strict=True))


def _one_for_all(array: Array, spec: TensorSpec, where: str, count: int, notes: list[str]) -> Array:
    """One copy a sample of an input without a sample axis, given once or as equal rows."""
    rank = len(spec.shape)
    if array.ndim == rank + 1 and len(array) in (1, count):
        if not (array == array[:1]).all():
            raise DataError(
                f"{where} differs between samples, but the model takes it once a call",
                node=spec.name,
                hint="split the data by its values",
            )
        array = array[0]
    if array.ndim == 0 and rank:
        array = np.broadcast_to(array, _settled(spec.shape, array))
    whole = TensorSpec(spec.name, spec.dtype, ("samples", *spec.shape), bound=spec.bound)
    return copies(_checked(array[None], whole, where, notes)[0], count)


def _checked(array: Array, spec: TensorSpec, where: str, notes: list[str]) -> Array:
    array = array if isinstance(array, np.ndarray) else np.asarray(array)
    _check_shape(array, spec, where)
    array = _converted(array, spec, where, notes)
    check_finite(array, where)
    if spec.bound is not None and (array.max() >= spec.bound or array.min() < -spec.bound):
        raise DataError(
            f"{where} goes from {array.min()} to {array.max()}, but is an index into {spec.bound} rows",
            node=spec.name,
            hint="use the tokenizer this model was trained with",
        )
    return array


def _check_shape(array: Array, spec: TensorSpec, where: str) -> None:
    if array.dtype.hasobject:
        raise DataError(f"{where} holds Python objects", hint="all samples need one shape and dtype")
    if array.ndim == 0 or (spec.rank_known and not spec.shape):
        raise DataError(
            f"{where} has no sample axis", node=spec.name, hint="axis 0 has to be the sample, also for one"
        )
    if array.size == 0:
        raise DataError(
            f"{where} is empty (shape {_shape(array.shape)})", node=spec.name, hint="it needs samples"
        )
    if not spec.rank_known:
        return
    fits = array.ndim == len(spec.shape) and all(
        not isinstance(want, int) or want == have
        for want, have in zip(spec.shape[1:], array.shape[1:], strict=True)
    )
    if not fits:
        wanted = _shape(("samples", *spec.shape[1:]))
        raise DataError(
            f"{where} has shape {_shape(array.shape)}, the model wants {wanted}",
            node=spec.name,
            hint="axis 0 is the sample",
        )


def _converted(array: Array, spec: TensorSpec, where: str, notes: list[str]) -> Array:
    """The array in the model's dtype: only within one kind, and only if no value changes its meaning."""
    have, want = array.dtype, spec.dtype
    if have == want:
        return array
    if have.newbyteorder("=") == want:
        return array.astype(want)
    if have.kind == want.kind and have.kind in "iuf":
        widening = np.can_cast(have, want)
        if not widening and have.kind == "f":
            limit = float(np.finfo(want).max)
            finite = array[np.isfinite(array)]
            if finite.size and float(np.abs(finite).max()) > limit:
                raise DataError(
                    f"{where} has values above {limit:.3g}, the largest {want}",
                    node=spec.name,
                    hint="scale the data as the model takes it",
                )
        if not widening and have.kind != "f":
            info = np.iinfo(want)
            if array.min() < info.min or array.max() > info.max:
                raise DataError(
                    f"{where} has values that don't fit {want}", node=spec.name, hint=f"give it as {want}"
                )
        notes.append(f"{where} was converted from {have} to {want}")
        return array.astype(want)
    raise DataError(
        f"{where} is {have}, the model wants {want}",
        node=spec.name,
        hint="give the data as the model takes it, scaled and normalised",
    )


def check_finite(array: Array, where: str) -> None:
    """No NaN, no infinity.

    Raises:
        DataError: names the first sample that has one.
    """
    if array.dtype.kind != "f":
        return
    rows = max(1, CHUNK // max(1, array[0].nbytes))
    for start in range(0, len(array), rows):
        part = array[start : start + rows]
        with np.errstate(all="ignore"):
            finite = np.isfinite(part.sum())  # NaN and infinity never sum to a finite number; one fast pass
        forget(array)
        if finite:
            continue
        bad = ~np.isfinite(part.reshape(len(part), -1)).all(axis=1)
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            kind = "NaN" if np.isnan(part[first]).any() else "infinity"
            raise DataError(
                f"{where} has {kind} in sample {start + first}", hint="clean the data or leave the sample out"
            )


def _check_counts(counts: Mapping[str, int], source: str) -> int:
    if len(set(counts.values())) > 1:
        text = ", ".join(f"'{name}' {count}" for name, count in counts.items())
        raise DataError(
            f"{source}: the arrays have different numbers of samples: {text}", hint="axis 0 is the sample"
        )
    return next(iter(counts.values()))


def _check_shared_dims(inputs: Mapping[str, Array], signature: Signature, source: str) -> None:
    """Dims of one name have one size, across inputs."""
    seen: dict[str, tuple[str, int]] = {}
    for spec in signature.inputs:
        for axis, dim in enumerate(spec.shape if spec.name in inputs else ()):
            if axis and isinstance(dim, str):
                size = inputs[spec.name].shape[axis]
                other, known = seen.setdefault(dim, (spec.name, size))
                if known != size:
                    raise DataError(
                        f"{source}: dim '{dim}' is {known} in array '{other}', but {size} in '{spec.name}'",
                        node=spec.name,
                        hint="the model gives both one name, so they have one size",
                    )


def _checked_labels(labels: Array, signature: Signature, source: str, notes: list[str]) -> Array:
    """Labels as one entry a sample; class numbers are checked where the number of classes is known."""
    where = f"{source}: array '{LABELS}'"
    if labels.dtype.hasobject:
        raise DataError(f"{where} holds Python objects", hint="save class numbers")
    if labels.ndim == 0 or labels.size == 0:
        raise DataError(f"{where} is empty", hint="give one label a sample")
    check_finite(labels, where)
    classes = signature.classes
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if classes is None:
        return labels
    if labels.shape[1:] == (classes,) and _is_one_hot(labels):
        notes.append(f"{where} is one-hot: taken as class numbers")
        labels = labels.argmax(axis=1)
    if labels.ndim == 1 and labels.dtype.kind == "f" and np.all(labels == np.round(labels)):
        notes.append(f"{where} was converted from {labels.dtype} to int64")
        labels = labels.astype(np.int64)
    if labels.ndim == 1 and labels.dtype.kind in "iub":
        labels = labels.astype(np.int64)
        check_classes(labels, classes, f"{where}", signature.outputs[0].name)
    return labels


def check_classes(labels: Array, classes: int, where: str, output: str) -> None:
    """Class numbers lie in [0, classes).

    Raises:
        DataError: names the first sample whose label doesn't.
    """
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(bad):
        raise DataError(
            f"{where} has label {labels[bad[0]]} in sample {bad[0]}, outside the {classes} classes"
            f" of output '{output}'",
            hint=f"labels go from 0 to {classes - 1}",
        )


def _is_one_hot(labels: Array) -> bool:
    return bool(np.all((labels == 0) | (labels == 1)) and np.all(labels.sum(axis=1) == 1))


def _shape(dims: tuple[Any, ...]) -> str:
    return "x".join("?" if d is None else str(d) for d in dims) or "scalar"
