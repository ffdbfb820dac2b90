"""Running ONNX models: the only place that opens an onnxruntime ``InferenceSession``.

Everything that has to do with onnxruntime's ways is settled here once: quiet logs, one-line errors that
name the node, models above protobuf's 2 GB, weights beside the model, extra outputs, fixed batch sizes.

Denormals: onnxruntime's ``session.set_denormal_as_zero`` is decided for the calling thread by the *first*
session of a process (``call_once``) and from then on also flushes numpy's denormals. It's therefore
neither reliable nor harmless, and never set here; denormal *weights* are flushed when a graph is emitted.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from condensec.data.side import batch_of, crosses_samples, sample_axis, single_call
from condensec.errors import CondensecError, DataError
from condensec.ports import Port, check_fit, concatenate, pad, port_of, ranked, trim
from condensec.runtime_errors import raise_load_error, raise_run_error
from condensec.runtime_flaws import unsafe_optimizers
from condensec.serialized import add_outputs, locate

if TYPE_CHECKING:
    from condensec.serialized import ModelSource

Arrays: TypeAlias = Mapping[str, np.ndarray]

CPU = ("CPUExecutionProvider",)
_FOLDER_KEY = "session.model_external_initializers_file_folder_path"
_FATAL = 4  # onnxruntime's log level: errors are raised anyway, so nothing needs to be printed
_LEVELS = {
    True: "ORT_ENABLE_ALL",
    False: "ORT_DISABLE_ALL",
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "disabled": "ORT_DISABLE_ALL",
}


class HasInputs(Protocol):
    """What `Session.run_samples` needs of samples: arrays by input name, axis 0 = sample."""

    @property
    def inputs(self) -> Arrays:
        """Arrays by graph-input name."""


class Session:
    """An open onnxruntime session.

    Args:
        model: an onnx_ir model, a file, a serialised model, or an ``onnx.ModelProto``. Never modified.
        threads: intra-op threads (inter-op is always 1, execution sequential).
        providers: execution providers, best first: names, or (name, options) pairs.
        optimize: True/"all", "extended", "basic", or False/"disabled".
        extra_outputs: names of intermediate values to add as graph outputs (on a copy). Note that this
            stops onnxruntime from fusing across them.
        config: further session configuration entries.
        profile: path prefix; turns on onnxruntime's profiler (see `end_profile`).
        save_optimized: write the graph as onnxruntime optimised it to this file, external weights inside
            if they fit: onnxruntime would refer to them by where they lay beside the original.

    Raises:
        ModelError: onnxruntime can't load the model.
        PreconditionError: an extra output isn't a value of the graph.
    """

    def __init__(
        self,
        model: ModelSource,
        *,
        threads: int = 1,
        providers: Sequence[str | tuple[str, Mapping[str, str]]] = CPU,
        optimize: bool | str = True,
        extra_outputs: Sequence[str] = (),
        config: Mapping[str, str] | None = None,
        profile: Path | None = None,
        save_optimized: Path | None = None,
    ) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[optimize])
        for key, value in (config or {}).items():
            options.add_session_config_entry(key, value)
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        if save_optimized is not None:
            options.optimized_model_filepath = str(save_optimized)
        self._label = str(model) if isinstance(model, str | os.PathLike) else "the model"
        source = self._prepare(model, tuple(extra_outputs), options, inline=save_optimized is not None)
        try:
            self._raw = ort.InferenceSession(
                source,
                options,
                providers=[p if isinstance(p, str) else (p[0], dict(p[1])) for p in providers],
                disabled_optimizers=unsafe_optimizers(source) if optimize else [],
            )
        except Exception as error:
            raise_load_error(error, self._label)
        self._quiet = ort.RunOptions()
        self._quiet.log_severity_level = _FATAL
        self.inputs: tuple[Port, ...] = tuple(port_of(arg) for arg in self._raw.get_inputs())
        self.outputs: tuple[Port, ...] = tuple(port_of(arg) for arg in self._raw.get_outputs())
        self._by_name = {port.name: port for port in self.inputs}
        known = ranked(source) if any(not port.shape for port in self.inputs) else set()
        own = self.outputs if not extra_outputs else [p for p in self.outputs if p.name not in extra_outputs]
        self.ports = [(p.name, p.shape, bool(p.shape) or p.name in known) for p in self.inputs]
        self._sample_axis = {p.name: sample_axis(self.ports, p.shape) for p in own}
        self._unnamed = {p.name for p in own if not p.shape or isinstance(p.shape[0], int)}
        self._crosses = any(crosses_samples(self.ports, p.shape) for p in own)

    def _prepare(
        self, model: ModelSource, extra: tuple[str, ...], options: Any, *, inline: bool
    ) -> str | bytes:
        """What to hand to onnxruntime: a path or bytes; sets the weights' folder where one is needed."""
        if isinstance(model, str | os.PathLike) and not extra and not inline:
            return os.fspath(model)
        if isinstance(model, bytes) and not extra:
            return model
        proto, folder = locate(model, self._keep_folder, inline)
        if extra:
            add_outputs(proto, extra)
        if folder is not None:
            options.add_session_config_entry(_FOLDER_KEY, folder)
        return bytes(proto.SerializeToString())

    def _keep_folder(self) -> Path:
        """A temporary folder that lives as long as this session (its weights may be memory-mapped)."""
        folder = tempfile.mkdtemp(prefix="condensec-")
        weakref.finalize(self, shutil.rmtree, folder, True)
        return Path(folder)

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers in use, best first."""
        return tuple(self._raw.get_providers())

    @property
    def batch_size(self) -> int | None:
        """The fixed batch size (axis 0 of the inputs), or None where it's dynamic."""
        return batch_of(self.ports)

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Run once.

        Args:
            feeds: one array per graph input; arrays for other names are ignored.
            outputs: which outputs to compute; None = all, extra ones included.

        Returns:
            Arrays by output name, in the order asked for.

        Raises:
            DataError: a feed is missing or doesn't fit its input's dtype or shape.
            PostconditionError: a node failed; ``node`` holds its name.
        """
        names = list(outputs) if outputs is not None else [port.name for port in self.outputs]
        try:
            values = self._raw.run(names, self._checked(feeds), self._quiet)
        except CondensecError:
            raise
        except Exception as error:
            raise_run_error(error, self._label)
        return dict(zip(names, values, strict=True))

    def run_samples(
        self, samples: HasInputs, batch: int = 32, outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run all samples and concatenate the outputs along axis 0.

        A model whose batch is fixed to n takes n samples a call; the last call is padded by repeating the
        last sample and its outputs are trimmed; so is that of a model that compares the samples of a call
        with one another, whose outputs would have fewer columns otherwise. An output whose axis 0 is no
        multiple of the batch has no sample axis and is concatenated as it comes, one part a call (scalars:
        one row a call).

        Args:
            samples: arrays by input name, axis 0 = sample.
            batch: samples a call where the batch is dynamic.
            outputs: which outputs; None = all.

        Raises:
            DataError: there are no samples, or they don't fit.
            PostconditionError: a node failed, or an output's shape changes from call to call.
        """
        arrays = {name: samples.inputs[name] for name in self._by_name if name in samples.inputs}
        counts = {len(array) for array in arrays.values()}
        if len(counts) > 1 or counts <= {0}:
            sizes = {name: len(array) for name, array in arrays.items()}
            raise DataError(
                f"the samples need one and the same number (> 0) of rows for every input: {sizes}"
            )
        count = counts.pop()
        fixed = self.batch_size
        size = fixed if fixed is not None else max(1, min(batch, count))
        parts: dict[str, list[np.ndarray]] = {}
        for start in range(0, count, size):
            valid = min(size, count - start)
            feeds = {name: array[start : start + valid] for name, array in arrays.items()}
            rows = size if fixed is not None or self._crosses else valid
            if valid < rows:
                feeds = {name: pad(array, rows) for name, array in feeds.items()}
            for name, value in self.run(feeds, outputs).items():
                parts.setdefault(name, []).append(trim(self.by_sample(name, value), rows, valid))
        return {name: concatenate(name, values) for name, values in parts.items()}

    def by_sample(self, name: str, value: np.ndarray) -> np.ndarray:
        """An output with samples along axis 0; see `condensec.data.side.sample_axis`."""
        axis = self._sample_axis.get(name, 0)
        if axis == 0 and name in self._unnamed:
            axis = sample_axis(self.ports, value.shape)  # files are wrong about shapes now and then
        if axis is None:
            return value if value.shape[:1] == (1,) else value[None]
        return np.moveaxis(value, axis, 0) if axis and axis < value.ndim else value

    def prepared(self, feeds: Arrays) -> Callable[[], None]:
        """A call without checks and with as little overhead as Python allows (about 4 us), for timing.

        It hands over numpy arrays: onnxruntime takes them without a copy, and in 1.32 its I/O binding costs
        ten times as much a call.

        Raises:
            DataError: a feed is missing or doesn't fit.
            PostconditionError: a node failed.
        """
        raw, quiet, checked = self._raw, self._quiet, self._checked(feeds)
        names = [port.name for port in self.outputs]

        def call() -> None:
            raw.run(names, checked, quiet)

        try:
            call()
        except Exception as error:
            raise_run_error(error, self._label)
        return call

    def end_profile(self) -> Path:
        """Stop the profiler and return the JSON file it wrote (Chrome trace events)."""
        return Path(self._raw.end_profiling())

    def _checked(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """The feeds this graph takes, contiguous, or an error that names the array."""
        checked: dict[str, np.ndarray] = {}
        feeds = single_call(self.ports, feeds)
        for port in self.inputs:
            array = feeds.get(port.name)
            if array is None:
                raise DataError(f"{self._label}: input '{port.name}' isn't among the arrays {sorted(feeds)}")
            check_fit(port, array)
            checked[port.name] = np.ascontiguousarray(array) if array.ndim else np.asarray(array)
        return checked


def runtime_version() -> str:
    """Version of the installed onnxruntime."""
    import onnxruntime as ort

    return str(ort.__version__)


def available_providers() -> tuple[str, ...]:
    """Execution providers the installed onnxruntime offers."""
    import onnxruntime as ort

    return tuple(ort.get_available_providers())
