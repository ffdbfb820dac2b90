"""The worker's data on disk: inputs, labels and the teacher's outputs, written batch by batch."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from condensec.errors import HealError
from condensec.healing import losses
from condensec.healing.training import Training

if TYPE_CHECKING:
    import onnx

    from condensec.data import Samples

_HALF_ABOVE = 1 << 29  # bytes; larger targets are stored in half precision
_CHUNK = 256  # samples whose outputs are held at a time


def rows(array: np.ndarray, count: int) -> np.ndarray:
    """The first `count` rows, repeated from the start where there are fewer."""
    return np.take(array, np.arange(count), axis=0, mode="wrap")


def shared_outputs(student: onnx.ModelProto, teacher: Path) -> list[str]:
    """Outputs that both models have.

    Raises:
        HealError: there are none.
    """
    from condensec.runner import Session

    theirs = {port.name for port in Session(teacher).outputs}
    shared = [o.name for o in student.graph.output if o.name in theirs]
    if not shared:
        raise HealError(
            f"student and teacher {teacher} have no output in common", hint="they need the same names"
        )
    return shared


def sample(
    teacher: Path, samples: Samples, outputs: list[str], threads: int
) -> tuple[dict[str, np.ndarray], float]:
    """The teacher's outputs on a few samples, to see what they look like, and its seconds a sample."""
    from condensec.runner import Session

    few = samples.subset(np.arange(0, len(samples), max(1, len(samples) // 64))[:64])
    session = Session(teacher, threads=threads)
    answers = session.run_samples(few)
    begun = time.monotonic()
    session.run_samples(few)
    pace = (time.monotonic() - begun) / len(few)
    return {name: answers[name] for name in outputs}, pace


def store(
    teacher: Path, samples: Samples, training: Training, folder: Path, threads: int, batch: int
) -> dict[str, str]:
    """Write inputs, labels and teacher outputs as .npy files.

    Files that are there already, of an interrupted call, are written again: they are cheap next to training.

    Returns:
        Graph input -> file.

    Raises:
        HealError: the teacher gives something that isn't a number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, str] = {}
    for i, name in enumerate(training.inputs):
        path = folder / f"input{i}.npy"
        kind = samples.inputs[name].dtype
        np.save(
            path,
            np.asarray(samples.inputs[name], np.float32 if kind.kind == "f" else kind),
            allow_pickle=False,
        )
        files[name] = str(path)
    if training.uses_labels and samples.labels is not None:
        wanted = next(i for i in training.model.graph.input if i.name == losses.LABELS)
        dtype = np.float32 if wanted.type.tensor_type.elem_type == 1 else np.int64
        np.save(folder / "labels.npy", samples.labels.astype(dtype), allow_pickle=False)
        files[losses.LABELS] = str(folder / "labels.npy")
    files.update(_teacher_outputs(teacher, samples, training, folder, threads, batch))
    return files


def _teacher_outputs(
    teacher: Path, samples: Samples, training: Training, folder: Path, threads: int, batch: int
) -> dict[str, str]:
    from condensec.runner import Session

    session = Session(teacher, threads=threads)
    count = len(samples)
    stored: dict[str, Any] = {}
    files = {name: str(folder / f"target{i}.npy") for i, name in enumerate(training.targets)}
    for start in range(0, count, _CHUNK):
        part = samples.subset(np.arange(start, min(start + _CHUNK, count)))
        answers = session.run_samples(part, batch=batch)
        for name, output in training.targets.items():
            value = answers[output]
            if not np.isfinite(value).all():
                raise HealError(
                    f"the teacher's output '{output}' has NaN or infinity on sample {start} or later"
                )
            if name not in stored:
                size = count * value[0].size * 4
                dtype = np.float16 if size > _HALF_ABOVE else np.float32
                shape = (count, *value.shape[1:])
                stored[name] = np.lib.format.open_memmap(files[name], mode="w+", dtype=dtype, shape=shape)
            stored[name][start : start + len(value)] = value
    for array in stored.values():
        array.flush()
    return files


def reference(files: Mapping[str, str], training: Training) -> dict[str, np.ndarray]:
    """The teacher's stored outputs by output name, memory-mapped."""
    return {
        output: np.load(files[name], mmap_mode="r", allow_pickle=False)
        for name, output in training.targets.items()
    }


def head(path: Path, size: int = 1 << 16) -> bytes:
    """The first bytes of a file, to tell data apart."""
    with open(path, "rb") as file:
        return file.read(size)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write under a temporary name, then move into place."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(temporary, path)
