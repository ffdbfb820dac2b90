"""Peak memory of load, analysis, cut and save above the interpreter's, for large models.

    python benchmarks/memory.py [--inline 0.4] [--external 3] [--keep 0.5 0.9]

Two chains of linear layers of the given sizes in GiB, one with its weights in the file, one with external
data, are made, cut and written, each in a process of its own. In the table: the larger of input and output,
the peak above that of the process before it reads the model (VmHWM, so Linux only), and their ratio.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import numpy as np
import onnx
from onnx import TensorProto, helper

CODE = """
import json, sys
from pathlib import Path
from condensec import io
from condensec.passes.groups import analyze
from condensec.passes.prune import prune
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024
base = peak()
analysis = analyze(io.load(Path(sys.argv[1])))
units = {g.id: list(range(int(g.size * float(sys.argv[3])))) for g in analysis.groups}
io.save(prune(analysis, units).model, Path(sys.argv[2]))
print(json.dumps(peak() - base))
"""


def chain(folder: Path, gib: float, width: int, external: bool, seed: int) -> Path:
    """Linear layers with rectifiers between them, of about the given size; written layer by layer."""
    rng = np.random.default_rng(seed)
    nodes, weights, value = [], [], "x"
    with open(folder / "weights.bin", "wb") as data:
        for i in range(max(2, round(gib * 2**30 / (4 * width * width)))):
            raw = (rng.standard_normal((width, width), dtype=np.float32) * 0.01).tobytes()
            weight = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[width, width])
            if external:
                place = {"location": "weights.bin", "offset": str(data.tell()), "length": str(len(raw))}
                weight.data_location = TensorProto.EXTERNAL
                for key, text in place.items():
                    entry = weight.external_data.add()
                    entry.key, entry.value = key, text
                data.write(raw)
            else:
                weight.raw_data = raw
            weights.append(weight)
            nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [f"m{i}"]))
            nodes.append(helper.make_node("Relu", [f"m{i}"], [f"r{i}"]))
            value = f"r{i}"
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", width]) for n in ("x", value)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


def size(folder: Path) -> float:
    """MiB of all files in a folder."""
    return sum(f.stat().st_size for f in folder.iterdir()) / 2**20


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="memory")
    parser.add_argument("--inline", type=float, default=0.4, metavar="GIB")
    parser.add_argument("--external", type=float, default=3.0, metavar="GIB")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.9])
    options = parser.parse_args()
    rows = []
    for kind, gib, width in (("inline", options.inline, 2048), ("external", options.external, 4096)):
        with tempfile.TemporaryDirectory(dir=".") as name:
            source = Path(name) / "source"
            source.mkdir()
            model = chain(source, gib, width, kind == "external", options.seed)
            for keep in options.keep:
                target = Path(name) / f"cut-{keep}"
                target.mkdir()
                command = [sys.executable, "-c", CODE, str(model), str(target / "cut.onnx"), str(keep)]
                begun = time.monotonic()
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                larger = max(size(source), size(target))
                peak = float(json.loads(done.stdout))
                rows.append({
                    "weights": kind, "kept": keep, "larger file MiB": round(larger), "peak MiB": round(peak),
                    "ratio": peak / larger, "seconds": round(time.monotonic() - begun, 1),
                })  # fmt: skip
    print(common.table(rows))
    common.write_json(options.output / "memory.json", {"rows": rows}, started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
