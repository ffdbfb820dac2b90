"""Measuring models honestly: one alone, or two against each other.

`compare` runs both in turn on one pinned core and reports the median of the paired ratios with a bootstrap
95% interval: repeats agree within 0.6%, against 1.4-4.4% for one model after the other. A win is claimed
only if the interval excludes 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from condensec.errors import ConfigError
from condensec.hardware import isa, memory, providers
from condensec.hardware.measurement import Comparison, Environment, Measurement
from condensec.hardware.protocol import (
    Array,
    Clocked,
    Protocol,
    Spread,
    bootstrap,
    interleave,
    load_average,
    pinned,
)
from condensec.runner import Session, available_providers, runtime_version

if TYPE_CHECKING:
    from condensec.runner import Arrays
    from condensec.serialized import ModelSource

__all__ = ["Comparison", "Environment", "Measurement", "compare", "make_feeds", "measure", "model_bytes"]

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Opened:
    name: str
    session: Session
    call: Callable[[], None]
    creation: float
    first_run: float
    size: int
    path: str
    dims: Mapping[str, int]  # sizes of the named dynamic dims
    shapes: Mapping[str, tuple[int, ...]]  # of the inputs
    peak: int | None


def measure(
    model: ModelSource,
    feeds: Arrays | None = None,
    *,
    shapes: Shapes | None = None,
    protocol: Protocol | None = None,
) -> Measurement:
    """Time one model.

    Args:
        model: a model in any form.
        feeds: inputs; default: synthetic ones.
        shapes: input name -> shape, for the dynamic dims of synthetic inputs.
        protocol: how to measure.

    Raises:
        ModelError, DataError, PostconditionError: the model doesn't load, the feeds don't fit, it fails.
        ConfigError: a provider isn't there.
    """
    protocol = protocol or Protocol()
    _check_providers(protocol)
    feeds = make_feeds(model, shapes, protocol.seed) if feeds is None else feeds
    with pinned(protocol.threads, protocol.pin) as cores:
        opened = _open(model, _names((model, "a"))[0], feeds, protocol)
        clocked = interleave([opened.call], protocol)
    return _measurement(opened, clocked, 0, _environment(opened, protocol, cores))


def compare(
    a: ModelSource,
    b: ModelSource,
    feeds: Arrays | None = None,
    *,
    shapes: Shapes | None = None,
    protocol: Protocol | None = None,
) -> Comparison:
    """Time two models against each other, interleaved.

    Args:
        a: the model before.
        b: the model after. It takes the same feeds.
        feeds: inputs; default: synthetic ones that fit ``b`` (whose shapes may be fixed) if they fit ``a``.
        shapes: input name -> shape, for the dynamic dims of synthetic inputs.
        protocol: how to measure.

    Raises:
        ModelError, DataError, PostconditionError: a model doesn't load, the feeds don't fit, one fails.
        ConfigError: a provider isn't there.
    """
    protocol = protocol or Protocol()
    _check_providers(protocol)
    feeds = make_feeds(b, shapes, protocol.seed) if feeds is None else feeds
    with pinned(protocol.threads, protocol.pin) as cores:
        names = _names((a, "a"), (b, "b"))
        opened = [_open(model, name, feeds, protocol) for model, name in zip((a, b), names, strict=True)]
        clocked = interleave([one.call for one in opened], protocol)
    first, second = (
        _measurement(one, clocked, i, _environment(one, protocol, cores)) for i, one in enumerate(opened)
    )
    wall = bootstrap(clocked.wall[:, 1] / clocked.wall[:, 0], protocol.seed)
    cpu = bootstrap(_ratios(clocked.cpu), protocol.seed)
    basis = "cpu" if "cpu" in (first.basis, second.basis) else "wall"
    chosen = cpu if basis == "cpu" else wall
    return Comparison(first, second, chosen[0], chosen[1:], wall, cpu, basis, len(clocked.wall))


def make_feeds(
    model: ModelSource, shapes: Shapes | None = None, seed: int = 0, *, strict: bool = True
) -> dict[str, np.ndarray]:
    """Synthetic inputs of one call.

    Args:
        model: the model.
        shapes: input name -> shape, for dynamic dims. Default batch: the fixed one, or 1.
        seed: of the values.
        strict: False = a fixed batch size wins over that of ``shapes``.

    Raises:
        ConfigError: the inputs disagree about the batch size.
    """
    from condensec.data import synthetic
    from condensec.model_signature import signature
    from condensec.serialized import to_ir

    spec = signature(to_ir(model))
    batches = set() if spec.batch is None else {spec.batch}
    if strict or not batches:
        batches |= {shape[0] for name, shape in (shapes or {}).items() if shape and name not in spec.sides}
    if len(batches) > 1:
        raise ConfigError(f"inputs disagree about the batch size: {sorted(batches)}")
    samples = synthetic(spec, seed=seed, count=batches.pop() if batches else 1, shapes=shapes)
    return spec.call(samples, len(samples))


def _names(*models: tuple[ModelSource, str]) -> list[str]:
    """File names, or whole paths where those are the same; a letter for a model without a file."""
    files = [model for model, _ in models if isinstance(model, str | Path)]
    alike = len({Path(file).name for file in files}) < len(files)
    return [
        letter if not isinstance(model, str | Path) else str(model) if alike else Path(model).name
        for model, letter in models
    ]


def _open(model: ModelSource, name: str, feeds: Arrays, protocol: Protocol) -> _Opened:
    start = time.perf_counter()
    session = Session(model, threads=protocol.threads, providers=protocol.providers)
    created = time.perf_counter()
    providers.check_used(protocol.providers, session.providers)
    call = session.prepared(feeds)
    ran = time.perf_counter()
    path = str(model) if isinstance(model, str | Path) else ""
    dims = {
        dim: size
        for port in session.inputs
        for dim, size in zip(port.shape, feeds[port.name].shape, strict=False)
        if isinstance(dim, str)
    }
    shapes = {port.name: feeds[port.name].shape for port in session.inputs}
    peak = memory.peak_bytes(Path(path), feeds, protocol) if path and protocol.memory else None
    times, size = (created - start, ran - created), model_bytes(model)
    return _Opened(name, session, call, *times, size, path, dims, shapes, peak)


def model_bytes(model: ModelSource) -> int:
    """Size of a model's file with its external weights, or of its serialised form."""
    import onnx_ir as ir

    if isinstance(model, bytes):
        return len(model)
    if isinstance(model, str | Path):
        path = Path(model)
        sidecars = {
            path.parent / tensor.location
            for graph in ir.load(path).graphs()
            for tensor in (value.const_value for value in graph.initializers.values())
            if isinstance(tensor, ir.ExternalTensor)
        }
        return sum(file.stat().st_size for file in (path, *sidecars))
    if isinstance(model, ir.Model):
        return sum(
            value.const_value.nbytes
            for graph in model.graphs()
            for value in graph.initializers.values()
            if value.const_value is not None
        )
    return int(model.ByteSize())


def _measurement(opened: _Opened, clocked: Clocked, column: int, where: Environment) -> Measurement:
    return Measurement(
        name=opened.name,
        wall=Spread.of(clocked.wall[:, column]),
        cpu=Spread.of(clocked.cpu[:, column]),
        first_run=opened.first_run,
        session_creation=opened.creation,
        model_bytes=opened.size,
        runs=len(clocked.wall),
        environment=where,
        command=_command(opened, where),
        peak_bytes=opened.peak,
    )


def _environment(opened: _Opened, protocol: Protocol, cores: tuple[int, ...] | None) -> Environment:
    return Environment(
        runtime_version(), isa.detect(), opened.session.providers[0], protocol.threads, cores, load_average()
    )


def _command(opened: _Opened, where: Environment) -> str:
    """What onnxruntime's own tool would be called with."""
    short = providers.perf_test_name(where.provider)
    if short == "tensorrt":
        return _trtexec(opened)
    dims = "".join(f" -f {name}:{size}" for name, size in sorted(opened.dims.items()))
    return (
        f"onnxruntime_perf_test -I -e {short} -m times -r 30 -x {where.threads} -y 1{dims} "
        f"{opened.path or opened.name}"
    )


def _trtexec(opened: _Opened) -> str:
    shapes = ",".join(
        f"{port.name}:{'x'.join(map(str, opened.shapes[port.name]))}"
        for port in opened.session.inputs
        if any(not isinstance(dim, int) for dim in port.shape)
    )
    given = f" --shapes={shapes}" if shapes else ""
    return f"trtexec --onnx={opened.path or opened.name}{given} --useCudaGraph --noDataTransfers"


def _ratios(cpu: Array) -> Array:
    """Paired ratios of CPU times; pairs too short for the CPU clock are left out."""
    usable = (cpu > 0).all(axis=1)
    return cpu[usable, 1] / cpu[usable, 0] if usable.any() else np.ones(1)


def _check_providers(protocol: Protocol) -> None:
    known = available_providers()
    for provider in protocol.providers:
        if provider not in known:
            raise ConfigError(f"onnxruntime has no '{provider}' here", hint=f"it has {', '.join(known)}")
