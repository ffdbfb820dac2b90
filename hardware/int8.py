"""Int8 graphs, as all dialects write them: one folded model and one calibration for all recipes."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from condensec import io
from condensec.hardware import bias, calibration
from condensec.hardware.quantize import PER_CHANNEL_OPSET, Scheme, folded, opset_of, quantize
from condensec.hardware.sensitive import LayerError, layer_errors
from condensec.hardware.work import node_macs

if TYPE_CHECKING:
    import onnx_ir as ir

    from condensec.hardware.emission import Recipe, Request


def source(request: Request, make: Callable[[], ir.Model]) -> Path:
    """The fp32 model as the quantizer gets it; ``make`` gives it before folding."""

    def write() -> Path:
        folder = Path(tempfile.mkdtemp(prefix="int8-", dir=request.scratch))
        weakref.finalize(request, shutil.rmtree, folder, ignore_errors=True)
        return folded(make(), folder / "folded.onnx")

    return request.once("int8 source", write)


def source_graph(request: Request, make: Callable[[], ir.Model]) -> ir.Model:
    """The same, read again: names of nodes are those that a `Scheme` may exclude."""
    path = source(request, make)
    return request.once("int8 graph", lambda: io.load(path))


def ranges(request: Request, path: Path, method: str) -> dict[str, tuple[float, float]]:
    """What 8 bits should cover of every activation, by one of the methods of `calibration`."""
    values = _values(request, path)
    return request.once(f"int8 ranges {method}", lambda: calibration.ranges(values, method))


def _values(request: Request, path: Path) -> dict[str, calibration.Values]:
    return request.once("int8 values", lambda: calibration.observe(path, request.samples, request.threads))


def _shifts(request: Request, path: Path, largest: int) -> dict[str, bias.Array]:
    """What rounding the weights does to each layer's outputs on average."""

    def find() -> dict[str, bias.Array]:
        import onnx

        proto = onnx.load_model(path)
        values = _values(request, path)
        means = {name: one.means for name, one in values.items() if one.means is not None}
        return bias.shifts(proto, means, opset_of(proto) >= PER_CHANNEL_OPSET, largest)

    return request.once("int8 shifts", find)


def write(request: Request, make: Callable[[], ir.Model], recipe: Recipe, scheme: Scheme, path: Path) -> None:
    """Write a graph as a recipe says; ``scheme`` is what the dialect wants."""
    folded_path = source(request, make)
    found = ranges(request, folded_path, recipe.method)
    wanted = replace(scheme, exclude=(*scheme.exclude, *recipe.exclude))
    largest = request.once("int8 largest weight", lambda: scheme.largest_weight)
    quantize(folded_path, path, found, wanted, _shifts(request, folded_path, largest))


def worst_layers(request: Request, recipe: Recipe) -> list[LayerError]:
    """Layers of a recipe's graph by what they lose in int8, the worst first; after `write`."""
    path: Path = request.once("int8 source", lambda: Path())
    found = ranges(request, path, recipe.method)
    largest = request.once("int8 largest weight", lambda: 127)
    return layer_errors(
        path, found, request.samples, exclude=recipe.exclude, threads=request.threads,
        shifts=_shifts(request, path, largest), largest=largest,
    )  # fmt: skip


def costly_layers(request: Request, recipe: Recipe) -> list[LayerError]:
    """The same by what they lose for each multiply-accumulate that 8 bits make cheaper; after `write`."""
    work = _work(request)
    return sorted(worst_layers(request, recipe), key=lambda x: -x.error / max(1, work.get(x.node, 1)))


def source_macs(request: Request) -> int:
    """Multiply-accumulates of one sample; after `write`."""
    return sum(_work(request).values())


def _work(request: Request) -> dict[str, int]:
    path: Path = request.once("int8 source", lambda: Path())
    return request.once("int8 work", lambda: node_macs(path, request.samples))
