"""The worker's samples on disk: inputs, labels and the teacher's values, written batch by batch."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from condensec.errors import HealError
from condensec.healing import losses
from condensec.healing.lengths import Lengths, corner
from condensec.healing.training import Training

if TYPE_CHECKING:
    from condensec.data import Samples
    from condensec.healing.augment import Augmenter

_HALF_ABOVE = 1 << 29  # bytes; larger targets are stored in half precision
_LARGEST_HALF = float(np.finfo(np.float16).max)
_CHUNK = 256  # samples whose outputs are held at a time


class Teacher:
    """An open teacher that writes samples beside its answers to them.

    Args:
        path: model file.
        training: says which inputs and which of its values are wanted.
        threads: for onnxruntime.
        batch: samples a call.
        lengths: that samples are cut to; what is written is zero beyond.
    """

    def __init__(
        self, path: Path, training: Training, threads: int, batch: int, lengths: Lengths | None = None
    ) -> None:
        from condensec.runner import Session

        self._training, self._batch, self._lengths = training, batch, lengths
        inner = tuple(v for v in training.targets.values() if v in training.matches)
        self._session = Session(path, threads=threads, extra_outputs=inner)

    def write(
        self,
        samples: Samples,
        folder: Path,
        *,
        augment: Augmenter | None = None,
        view: int = 0,
        watch: Watch | None = None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> dict[str, str]:
        """Write inputs, labels and the teacher's values as .npy files.

        Files that are there already, of an interrupted call, are written again: they are cheap next to
        training.

        Args:
            samples: what to write.
            folder: where to.
            augment: changes the samples first.
            view: number of this pass over the samples, for `augment`.
            watch: over the files the samples come from; None begins now.
            is_stopped: asked between batches; nobody needs the rest any more.

        Returns:
            Graph input -> file.

        Raises:
            HealError: the samples or the teacher's values hold something that isn't a number.
            OSError: the files can't be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        watch = watch or Watch(samples)
        files = self._files(samples, folder)
        with ExitStack() as stack:
            writers = {name: stack.enter_context(_Npy(path, len(samples))) for name, path in files.items()}
            for start in range(0, len(samples), _CHUNK):
                if is_stopped():
                    break
                watch.check()
                part = samples.subset(np.arange(start, min(start + _CHUNK, len(samples))))
                if augment is not None:
                    part = augment(part, view, start)
                for name, array in self._arrays(part, start).items():
                    writers[name].add(array)
            watch.check()
        return files

    def _files(self, samples: Samples, folder: Path) -> dict[str, str]:
        names = [*self._training.inputs, *self._training.targets]
        files = {name: str(folder / f"array{i}.npy") for i, name in enumerate(names)}
        if self._training.uses_labels and samples.labels is not None:
            files[losses.LABELS] = str(folder / "labels.npy")
        return files

    def _arrays(self, part: Samples, start: int) -> dict[str, np.ndarray]:
        """What is written for some samples."""
        training = self._training
        found: dict[str, np.ndarray] = {}
        for name in training.inputs:
            array = part.inputs[name]
            is_float = array.dtype.kind == "f"
            if is_float and not np.isfinite(array).all():
                raise HealError(f"input '{name}' has NaN or infinity on sample {start} or later")
            found[name] = np.asarray(array, np.float32) if is_float else array
        if training.uses_labels and part.labels is not None:
            wanted = next(i for i in training.model.graph.input if i.name == losses.LABELS)
            is_value = wanted.type.tensor_type.elem_type == 1
            found[losses.LABELS] = part.labels.astype(np.float32 if is_value else np.int64)
            if not np.isfinite(found[losses.LABELS]).all():
                raise HealError(f"the labels have NaN or infinity on sample {start} or later")
        for name, array in self._answers(part).items():
            if not np.isfinite(array).all():
                value = training.targets[name]
                raise HealError(
                    f"the teacher's value '{value}' has NaN or infinity on sample {start} or later"
                )
            found[name] = array
        return found

    def _answers(self, part: Samples) -> dict[str, np.ndarray]:
        """Target -> the teacher's values, each sample's computed at its own length."""
        if self._lengths is None:
            return self._run(part)
        shapes = self._training.shapes()
        found = {name: np.zeros((len(part), *shapes[name]), np.float32) for name in self._training.targets}
        kinds = self._lengths.kinds(part)
        for kind, size in enumerate(self._lengths.sizes):
            rows = np.flatnonzero(kinds == kind)
            if rows.size:
                for name, array in self._run(self._lengths.cut(part.subset(rows), size)).items():
                    corner(found[name], array.shape)[rows] = array
        return found

    def _run(self, part: Samples) -> dict[str, np.ndarray]:
        training = self._training
        values = list(dict.fromkeys(training.targets.values()))
        answers = self._session.run_samples(part, batch=self._batch, outputs=values)
        found = {}
        for name, value in training.targets.items():
            match = training.matches.get(value)
            found[name] = np.asarray(
                answers[value] if match is None else match.of(answers[value]), np.float32
            )
        return found


class _Npy:
    """An .npy file written row by row. Not a memory map: on a full disk that ends the process.

    Args:
        path: the file.
        count: rows there will be.
    """

    def __init__(self, path: str, count: int) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 (closed by __exit__)
        self._count = count
        self._dtype: Any = None

    def __enter__(self) -> _Npy:
        return self

    def __exit__(self, *unused: object) -> None:
        self._file.close()

    def add(self, array: np.ndarray) -> None:
        """The next rows."""
        if self._dtype is None:
            shape = (self._count, *array.shape[1:])
            is_large = array.dtype == np.float32 and 4 * int(np.prod(shape)) > _HALF_ABOVE
            self._dtype = np.dtype(np.float16) if is_large else array.dtype
            header = {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": shape,
            }
            np.lib.format.write_array_header_1_0(self._file, header)
        if self._dtype == np.float16:
            array = np.clip(array, -_LARGEST_HALF, _LARGEST_HALF)
        self._file.write(np.ascontiguousarray(array, self._dtype).tobytes())


class Watch:
    """Notices when a file that samples are mapped from is written to.

    A file that was replaced is no harm: what is mapped is the old one, as long as it is mapped. One that was
    written over gives a mixture of samples, and one that was cut off would end the process.

    Args:
        samples: any.
    """

    def __init__(self, samples: Samples) -> None:
        from condensec.data.types import files_of

        self._states = {path: _state(path) for path in files_of(samples.inputs)}

    def check(self) -> None:
        """Raises HealError if one has changed since."""
        for path, before in self._states.items():
            now = _state(path)
            if before is not None and now is not None and now != before and now[0] == before[0]:
                raise HealError(f"{path} was changed while it was being read", hint="run it again")


def _state(path: str) -> tuple[int, int, int] | None:
    """(inode, size, time of the last change); None if it's gone."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
