"""What the teacher gives on a few samples, and what was stored of its answers."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from condensec.data.side import sample_axis
from condensec.errors import CondensecError, HealError
from condensec.fidelity import output_error
from condensec.healing import losses
from condensec.healing.side import dims, ports
from condensec.healing.training import Training

if TYPE_CHECKING:
    import onnx

    from condensec.data import Samples

_PROBED = 64  # samples by which the teacher's values are looked at


def rows(array: np.ndarray, count: int) -> np.ndarray:
    """The first `count` rows, repeated from the start where there are fewer."""
    return np.take(array, np.arange(count), axis=0, mode="wrap")


def shared_outputs(student: onnx.ModelProto, teacher: Path) -> list[str]:
    """Outputs that both models have, and whose axis 0 is the sample axis, as training needs it.

    Raises:
        HealError: there are none.
    """
    from condensec.runner import Session

    theirs = {port.name for port in Session(teacher).outputs}
    given = ports(student)
    shared = [o.name for o in student.graph.output if o.name in theirs and sample_axis(given, dims(o)) == 0]
    if not shared:
        raise HealError(
            f"student and teacher {teacher} have no output in common", hint="they need the same names"
        )
    return shared


def _few(samples: Samples) -> Samples:
    return samples.subset(np.arange(0, len(samples), max(1, len(samples) // _PROBED))[:_PROBED])


def sample(
    teacher: Path, samples: Samples, outputs: list[str], threads: int
) -> tuple[dict[str, np.ndarray], float]:
    """The teacher's outputs on a few samples, to see what they look like, and its seconds a sample."""
    from condensec.runner import Session

    few = _few(samples)
    session = Session(teacher, threads=threads)
    answers = session.run_samples(few)
    begun = time.monotonic()
    session.run_samples(few)
    pace = (time.monotonic() - begun) / len(few)
    return {name: answers[name] for name in outputs}, pace


def off(student: Path, samples: Samples, answers: Mapping[str, np.ndarray], threads: int) -> float:
    """How far a student is from its teacher: `output_error` of the output that is farthest off.

    Args:
        student: model file.
        samples: as `sample` got them.
        answers: what that gave.
        threads: for onnxruntime.
    """
    from condensec.runner import Session

    given = Session(student, threads=threads).run_samples(_few(samples))
    alike = {name: wanted for name, wanted in answers.items() if given[name].shape == wanted.shape}
    return max((output_error({name: wanted}, given) for name, wanted in alike.items()), default=0.0)


def insides(teacher: Path, samples: Samples, names: Sequence[str], threads: int) -> dict[str, np.ndarray]:
    """Values inside the teacher on a few samples.

    Those it doesn't have, or doesn't have sample by sample, are left out.

    Raises:
        HealError: the teacher can't be read.
    """
    import onnx

    from condensec.runner import Session

    graph = onnx.load(str(teacher), load_external_data=False).graph
    made = {name for node in graph.node for name in node.output}
    there = [name for name in names if name in made]
    if not there:
        return {}
    few = _few(samples)
    try:
        answers = Session(teacher, threads=threads, extra_outputs=there).run_samples(few, outputs=there)
    except CondensecError as error:
        raise HealError(f"the teacher's inner values can't be computed: {error}") from error
    return {name: value for name, value in answers.items() if len(value) == len(few)}


def reference(files: Mapping[str, str], training: Training) -> dict[str, np.ndarray]:
    """The teacher's stored outputs by output name, memory-mapped."""
    return {
        output: np.load(files[name], mmap_mode="r", allow_pickle=False)
        for name, output in training.targets.items()
        if output not in training.matches
    }


def untrained(
    student: onnx.ModelProto, teacher: Path, samples: Samples, known: Collection[str], threads: int
) -> dict[str, np.ndarray]:
    """The teacher's other outputs: nothing is trained by class numbers, but they may be judged."""
    from condensec.runner import Session

    if all(output.name in known for output in student.graph.output):
        return {}
    names = [name for name in shared_outputs(student, teacher) if name not in known]
    return Session(teacher, threads=threads).run_samples(samples, outputs=names) if names else {}


def summary(samples: Samples) -> bytes:
    """Bytes that tell samples apart: some rows of every array."""
    index = np.unique(np.linspace(0, len(samples) - 1, 64).astype(np.int64))
    part = samples.subset(index)
    found = [f"{len(samples)}".encode()]
    arrays = {**part.inputs, **({} if part.labels is None else {losses.LABELS: part.labels})}
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found += [f"{name}{array.dtype}{array.shape}".encode(), array.tobytes()]
    return b"".join(found)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write under a temporary name, then move into place."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(temporary, path)
