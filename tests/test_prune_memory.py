"""Large weights are sliced and written one at a time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from condensec import io, streaming

SCRIPT = """
import sys
from pathlib import Path
from condensec import io
from condensec.passes.groups import analyze
from condensec.passes.prune import prune
def peak():  # of this process alone: ru_maxrss begins with what the parent had
    status = Path("/proc/self/status").read_text()
    return int(next(s.split()[1] for s in status.splitlines() if s.startswith("VmHWM"))) / 1024
model = io.load(Path(sys.argv[1]))
analysis = analyze(model)
before = peak()
cut = prune(analysis, {g.id: range(int(g.size * float(sys.argv[3]))) for g in analysis.groups})
io.save(cut.model, Path(sys.argv[2]))
print(peak() - before)
"""


def external_model(folder: Path, layers: int, width: int) -> Path:
    """A chain of linear layers whose weights lie in a (sparse) file beside it."""
    nodes, weights, size, x = [], [], width * width * 4, "x"
    for k in range(layers):
        weight = TensorProto(
            name=f"w{k}", data_type=1, dims=[width, width], data_location=TensorProto.EXTERNAL
        )
        for key, value in (("location", "weights.bin"), ("offset", k * size), ("length", size)):
            entry = weight.external_data.add()
            entry.key, entry.value = key, str(value)
        weights.append(weight)
        nodes += [
            helper.make_node("MatMul", [x, f"w{k}"], [f"m{k}"]),
            helper.make_node("Relu", [f"m{k}"], [f"r{k}"]),
        ]
        x = f"r{k}"
    inputs = [helper.make_tensor_value_info("x", 1, ["N", width])]
    graph = helper.make_graph(
        nodes, "big", inputs, [helper.make_tensor_value_info(x, 1, ["N", width])], weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "big.onnx").write_bytes(model.SerializeToString())
    with open(folder / "weights.bin", "wb") as file:
        file.truncate(layers * size)
    return folder / "big.onnx"


on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")


@on_linux
@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_peak_memory_is_a_few_weights_not_the_model(tmp_path: Path, keep: float) -> None:
    model = external_model(tmp_path, layers=12, width=2048)  # 192 MiB in weights of 16
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model), str(tmp_path / "out.onnx"), str(keep)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout) < 100


WHOLE = """
import sys
from pathlib import Path
from condensec import io
from condensec.passes.groups import analyze
from condensec.passes.prune import prune
if sys.argv[5] == "whole":
    io.inplace.read = lambda path: None
def peak():  # of this process alone: ru_maxrss begins with what the parent had
    status = Path("/proc/self/status").read_text()
    return int(next(s.split()[1] for s in status.splitlines() if s.startswith("VmHWM"))) / 1024
def cut(source, target, keep):
    analysis = analyze(io.load(Path(source)))
    done = prune(analysis, {g.id: range(int(g.size * keep)) for g in analysis.groups})
    io.save(done.model, Path(target))
cut(sys.argv[2], sys.argv[3] + ".small", 0.5)
before = peak()
cut(sys.argv[1], sys.argv[3], float(sys.argv[4]))
print(peak() - before)
"""


def inline_model(path: Path, sizes: Sequence[tuple[int, int]], middle: int = 0) -> Path:
    """Linear layers with all their weights in the file, ``middle`` square ones last."""
    nodes, weights, x = [], [], "x"
    square = (sizes[-1][1], sizes[-1][1])
    for k, (rows, columns) in enumerate([*sizes, *[square] * middle]):
        array = np.full((rows, columns), 1e-3 * (k + 1), np.float32)
        weights.append(numpy_helper.from_array(array, f"w{k}"))
        nodes += [
            helper.make_node("MatMul", [x, f"w{k}"], [f"m{k}"]),
            helper.make_node("Relu", [f"m{k}"], [f"r{k}"]),
        ]
        x = f"r{k}"
    inputs = [helper.make_tensor_value_info("x", 1, ["N", sizes[0][0]])]
    outputs = [helper.make_tensor_value_info(x, 1, None)]
    graph = helper.make_graph(nodes, "inline", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@on_linux
@pytest.mark.parametrize("keep", [0.5, 0.9])
@pytest.mark.parametrize(
    ("sizes", "middle"),
    [
        ([(1448, 1448)], 7),  # 64 MiB in weights of 8
        ([(64, 256), (256, 65536), (65536, 8)], 0),  # nearly all of 66 MiB is one weight
        ([(32768, 256), (256, 1024)], 7),  # an embedding as large as everything behind it
        ([(64, 96)], 1000),  # 35 MiB in weights of 36 KiB
    ],
    ids=["alike", "one", "embedding", "small"],
)
def test_peak_memory_of_load_cut_and_save_is_within_the_models(
    tmp_path: Path, sizes: list[tuple[int, int]], middle: int, keep: float
) -> None:
    """At most 1.3 times the larger of what is read and what is written, with all weights in the file."""
    model = inline_model(tmp_path / "big.onnx", sizes, middle)
    assert share_of_peak(tmp_path, model, keep) <= 1.3


def share_of_peak(
    folder: Path, model: Path, keep: float, how: str = "in place", data: Path | None = None
) -> float:
    """Peak memory of load, cut and save, above that of a small model, over the larger of the two files."""
    small = inline_model(folder / "small.onnx", [(8, 16)], 4)
    command = [sys.executable, "-c", WHOLE, *map(str, (model, small, folder / "out.onnx", keep, how))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    written = (folder / "out.onnx").stat().st_size
    read = model.stat().st_size + (data.stat().st_size if data is not None else 0)
    assert written <= read + 4096
    return float(done.stdout) * 2**20 / max(read, written)


@on_linux
def test_one_large_weight_in_a_file_of_its_own_is_cut_in_pieces(tmp_path: Path) -> None:
    model = external_model(tmp_path, layers=1, width=4096)  # 64 MiB
    (tmp_path / "out").mkdir()
    assert share_of_peak(tmp_path / "out", model, 0.9, data=tmp_path / "weights.bin") <= 0.5


@on_linux
def test_a_model_that_is_parsed_whole_needs_more(tmp_path: Path) -> None:
    """The control: the measure sees what reading in place saves."""
    model = inline_model(tmp_path / "big.onnx", [(1448, 1448)], 7)
    assert share_of_peak(tmp_path, model, 0.5, "whole") > 1.3


def test_a_streamed_file_is_the_file_protobuf_would_write(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "large": rng.normal(size=(700, 500)).astype(np.float32),
        "half": rng.normal(size=(1200, 500)).astype(np.float16),
        "small": rng.normal(size=(500,)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "large"], ["a"]),
        helper.make_node("Add", ["a", "small"], ["y"]),
        helper.make_node("Identity", ["half"], ["z"]),
    ]
    outputs = [
        helper.make_tensor_value_info("y", 1, ["N", 500]),
        helper.make_tensor_value_info("z", 10, [1200, 500]),
    ]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, ["N", 700])], outputs,
                              [numpy_helper.from_array(a, n) for n, a in weights.items()])  # fmt: skip
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    io.save(model, tmp_path / "streamed.onnx")
    read = onnx.load(tmp_path / "streamed.onnx")
    onnx.checker.check_model(read, full_check=True)
    whole = ir.to_proto(model)
    assert read.ByteSize() == (tmp_path / "streamed.onnx").stat().st_size
    found = {w.name: numpy_helper.to_array(w) for w in read.graph.initializer}
    assert all(np.array_equal(found[n], a) for n, a in weights.items())
    for part in (read, whole):
        del part.graph.initializer[:], part.graph.value_info[:]
    assert read == whole


def test_lengths_are_written_as_protobuf_does() -> None:
    assert streaming._varint(0) == b"\x00"
    assert streaming._varint(300) == b"\xac\x02"
    assert streaming._varint(3 << 30) == onnx.ModelProto(ir_version=3 << 30).SerializeToString()[1:]
