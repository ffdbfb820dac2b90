"""What every dialect shares: the request, the artifact, and how true an emitted graph is to its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from condensec.errors import PostconditionError
from condensec.hardware.target import Target
from condensec.hardware.work import macs, times_within
from condensec.model_signature import signature
from condensec.runner import Session

if TYPE_CHECKING:
    import onnx_ir as ir

    from condensec.data import Samples

Arrays = Mapping[str, np.ndarray[Any, Any]]
T = TypeVar("T")
CHECKED, LEAST_CHECKED = 64, 8  # samples an emitted graph is run on
CHECKED_MACS = 1e11  # of one such run, a few seconds; fewer samples where the model is large
_FUSION_ERROR = 0.05  # of the largest output
_FUSION_SHARE = 4.0  # of the squared error without fusions
_FP32_ERROR = 1e-3  # of the largest output; reordered sums of deep nets come to a tenth of it


@dataclass(frozen=True)
class Request:
    """What a dialect is asked to write.

    Attributes:
        model: the fp32 model.
        target: for which target.
        samples: calibration samples.
        threads: threads for calibration.
        calibrate: how ranges of activations are found, of `condensec.hardware.calibration.METHODS`, or
            "auto": all are tried, and the truest is taken.
        scratch: folder for what lasts as long as the request.
        choosy: a precision is only wanted if it's likely faster, as with "auto".
    """

    model: ir.Model
    target: Target
    samples: Samples
    threads: int = 1
    calibrate: str = "auto"
    scratch: Path | None = None
    choosy: bool = False
    _found: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: str, find: Callable[[], T]) -> T:
        """What ``find`` gives, computed at the first call for a key: all variants share it."""
        if key not in self._found:
            self._found[key] = find()
        found: T = self._found[key]
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Input shapes of one call: the fixed batch size or 1, and the samples' other dims."""
        return {name: array.shape for name, array in self.feeds().items()}

    def feeds(self) -> dict[str, np.ndarray[Any, Any]]:
        """Real inputs of one call."""
        return signature(self.model).call(self.samples, 1)

    def checked(self) -> Samples:
        """What emitted graphs are checked on. The last samples: calibration looks at the first."""

        def count() -> int:
            return times_within(CHECKED_MACS, macs(self.model, self.samples), LEAST_CHECKED, CHECKED)

        end = len(self.samples)
        return self.samples.subset(range(max(0, end - self.once("checked", count)), end))


@dataclass(frozen=True)
class Recipe:
    """One way to write a graph.

    Attributes:
        precision: "fp32", "fp16" or "int8".
        variant: one of the dialect's names for its ways to write this precision.
        method: how ranges of activations are found, of `condensec.hardware.calibration.METHODS`.
        exclude: nodes that stay fp32.
        plain: the model as it is, without the dialect's rewrites.
    """

    precision: str
    variant: str = ""
    method: str = "minmax"
    exclude: tuple[str, ...] = ()
    plain: bool = False

    def __str__(self) -> str:
        details = [self.variant] if self.variant else []
        details += [self.method] if self.precision == "int8" and self.method != "minmax" else []
        details += [f"{len(self.exclude)} layers in fp32"] if self.exclude else []
        return f"{self.precision} ({', '.join(details)})" if details else self.precision


@dataclass(frozen=True)
class Fidelity:
    """How close an emitted graph's outputs are to the fp32 model's, on calibration samples.

    Attributes:
        max_error: largest absolute difference.
        scale: largest absolute output of the fp32 model.
        agreement: share of rows with the same largest entry; None where outputs have no classes.
        cosine: smallest mean cosine similarity of an output.
        samples: how many samples were run.
        error: squared error over the squares of the fp32 outputs, the largest of all outputs.
    """

    max_error: float
    scale: float
    agreement: float | None
    cosine: float
    samples: int
    error: float = 0.0

    def __str__(self) -> str:
        same = "" if self.agreement is None else f", same answer on {self.agreement:.1%}"
        return (
            f"largest difference to fp32 {self.max_error:.3g} on outputs up to {self.scale:.3g}{same} "
            f"({self.samples} samples)"
        )


@dataclass(frozen=True)
class Artifact:
    """What was written for one target.

    Attributes:
        path: the file to deploy.
        precision: "fp32", "fp16" or "int8".
        bytes: its size with external weights.
        verified: how the target's numbers are obtained, see `condensec.hardware.target.VERIFICATIONS`.
        notes: what a user should know.
        fidelity: against the fp32 model.
        command: a line that runs or measures it on the target, or empty.
        tried: recipe -> measured time over fp32, where it was measured.
        calibration: how the ranges of int8 activations were found, or empty.
        in_fp32: layers of an int8 graph that stay fp32, and why.
    """

    path: Path
    precision: str
    bytes: int
    verified: str
    notes: tuple[str, ...] = ()
    fidelity: Fidelity | None = None
    command: str = ""
    tried: Mapping[str, float] | None = None
    calibration: str = ""
    in_fp32: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "file": self.path.name,
            "precision": self.precision,
            "bytes": self.bytes,
            "verified": self.verified,
            "notes": list(self.notes),
            "fidelity": None if self.fidelity is None else vars(self.fidelity),
            "command": self.command,
            "tried": dict(self.tried or {}),
            "calibration": self.calibration,
            "in_fp32": [{"node": node, "reason": reason} for node, reason in self.in_fp32.items()],
        }


def reference(request: Request) -> dict[str, np.ndarray[Any, Any]]:
    """Outputs of the fp32 model on the samples that emitted graphs are checked on."""
    return Session(request.model, threads=request.threads).run_samples(request.checked())


def check(path: Path, request: Request, expected: Arrays, precision: str) -> Fidelity:
    """Run an emitted graph in this onnxruntime and compare it with the fp32 model.

    Raises:
        PostconditionError: it doesn't run, isn't finite, an fp32 graph differs, or onnxruntime's own fusions
            make a quantized graph wrong (1.32's MatMulIntegerToFloat does for some).
        ModelError: it doesn't load.
    """
    found = _compare(path, request, expected, precision, True)
    if precision == "fp32":
        if found.max_error > _FP32_ERROR * max(1.0, found.scale):
            raise PostconditionError(f"{path.name}: the emitted graph isn't its model: {found}")
        return found
    plain = _compare(path, request, expected, precision, False)  # even basic rewriting goes wrong for some
    worse = found.error > _FUSION_SHARE * plain.error + _FUSION_ERROR**2
    if worse or found.max_error > 3 * plain.max_error + _FUSION_ERROR * found.scale:
        raise PostconditionError(
            f"onnxruntime's fusions change the result: error {found.max_error:.3g} with them, "
            f"{plain.max_error:.3g} without"
        )
    return found


def _compare(
    path: Path, request: Request, expected: Arrays, precision: str, optimize: bool | str
) -> Fidelity:
    few = request.checked()
    found = Session(path, threads=request.threads, optimize=optimize).run_samples(few)
    errors, scales, agreements, cosines, relative = [0.0], [0.0], [], [1.0], [0.0]
    for name, want in expected.items():
        have = found[name]
        if have.shape != want.shape:
            raise PostconditionError(
                f"{path.name}: output '{name}' has shape {have.shape} instead of {want.shape}", node=name
            )
        if want.dtype.kind in "iub" and want.size:
            agreements.append(float(np.mean(want == have)))
        if want.dtype.kind != "f" or not want.size:
            continue
        a, b = want.astype(np.float64), have.astype(np.float64)
        if np.isfinite(a).all() and not np.isfinite(b).all():
            raise PostconditionError(f"{path.name}: output '{name}' isn't finite in {precision}", node=name)
        errors.append(float(np.abs(a - b).max()))
        scales.append(float(np.abs(a).max()))
        relative.append(float(np.square(a - b).sum() / max(float(np.square(a).sum()), 1e-30)))
        cosines.append(_cosine(a.reshape(len(a), -1), b.reshape(len(b), -1)))
        if a.ndim >= 2 and a.shape[-1] > 1:
            agreements.append(float(np.mean(a.argmax(-1) == b.argmax(-1))))
    agreement = min(agreements) if agreements else None
    return Fidelity(max(errors), max(scales), agreement, min(cosines), len(few), max(relative))


def _cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean((a * b).sum(axis=1) / np.maximum(norms, 1e-30)))
