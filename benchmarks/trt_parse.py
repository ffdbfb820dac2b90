"""Does NVIDIA's own parser take the graphs, and does an engine build for the chip? No GPU is needed.

    python benchmarks/trt_parse.py MODEL.onnx ... [--target nvidia-t4] [--precisions fp16 int8]

Every model is emitted for the target, then parsed and built by TensorRT for RTX, which carries NVIDIA's
ONNX parser and compiles for compute capability 7.5 (T4) and later on the processor alone. Nothing runs, so
the label is `parsed`. NVIDIA's packages (`onnxruntime-ep-nv-tensorrt-rtx-cu12`,
`tensorrt-rtx-cu12-bindings`, under NVIDIA's licence) go into an environment of their own in
`.cache/trt-env`; they are no dependency of condensec. RTX is not the TensorRT that a T4 server runs: what
it refuses, TensorRT may take, and the other way round.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import common

ENVIRONMENT = Path(__file__).parents[1] / ".cache" / "trt-env"
PACKAGES = ("onnxruntime-ep-nv-tensorrt-rtx-cu12", "tensorrt-rtx-cu12-bindings", "numpy")
# runs in that environment: file, capability, shapes -> one line of JSON
WORKER = """
import ctypes, glob, importlib.util, json, os, sys
base = importlib.util.find_spec("onnxruntime_ep_nv_tensorrt_rtx").submodule_search_locations[0]
for stem in ("libcudart.so", "libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so"):
    for file in glob.glob(os.path.join(base, stem + "*")):
        ctypes.CDLL(file, mode=ctypes.RTLD_GLOBAL)
import tensorrt_rtx_bindings as trt

class Quiet(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines = []
    def log(self, severity, message):
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.lines.append(message)

path, capability, shapes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
logger = Quiet()
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, logger)
parsed = parser.parse_from_file(path)
errors = [parser.get_error(i) for i in range(parser.num_errors)]
found = {"parsed": bool(parsed), "layers": network.num_layers,
         "errors": [f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in errors]}
if parsed:
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    if any(-1 in tuple(network.get_input(i).shape) for i in range(network.num_inputs)):
        profile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            name = network.get_input(i).name
            if name in shapes:
                profile.set_shape(name, shapes[name], shapes[name], shapes[name])
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    found["built"] = engine is not None
    found["bytes"] = 0 if engine is None else engine.nbytes
found["errors"] += logger.lines
print(json.dumps(found))
"""


def environment() -> Path:
    """Python of the environment with NVIDIA's packages; made if it isn't there."""
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / ".done").is_file():
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES], check=True)
        (ENVIRONMENT / ".done").touch()
    return python


def parse(python: Path, path: Path, capability: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, object]:
    """Parse and build one file, in a process of its own."""
    done = subprocess.run(
        [
            str(python),
            "-c",
            WORKER,
            str(path),
            capability,
            json.dumps({k: list(v) for k, v in shapes.items()}),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    if done.returncode:
        lines = (done.stderr or "").strip().splitlines() or [f"exit code {done.returncode}"]
        return {"parsed": False, "errors": [lines[-1]]}
    found: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def examine(path: Path, precision: str, options: argparse.Namespace, python: Path) -> dict[str, object]:
    """One model in one precision."""
    from condensec import data, io
    from condensec.hardware import bench
    from condensec.hardware import emit as emission
    from condensec.hardware.target import get
    from condensec.probe import runnable_shapes

    target, row = get(options.target), {"model": path.stem, "precision": precision}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        model = io.load(path)
        signature = io.signature(model)
        shapes = runnable_shapes(path, signature, {})
        samples = data.synthetic(signature, seed=options.seed, count=8, shapes=shapes)
        made = emission.emit(model, target, Path(name), precision=precision, samples=samples)
        if made.precision != precision:
            return {
                **row,
                "parsed": False,
                "refused": f"emitted as {made.precision}: {' '.join(made.notes)}"[:300],
            }
        fed = {key: array.shape for key, array in bench.make_feeds(made.path).items()}
        found = parse(python, made.path, target.isa.upper(), fed)
    row |= {"parsed": found["parsed"], "built": found.get("built", False), "layers": found.get("layers")}
    row["MB"] = round(float(str(found.get("bytes", 0))) / 1e6, 1)
    errors = [str(error) for error in found["errors"]]  # type: ignore[attr-defined]
    if errors and not row["built"]:
        row["refused"] = errors[0][:300]
    row["s"] = round(time.monotonic() - started, 1)
    return row


def main() -> None:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="trt_parse")
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--target", default="nvidia-t4")
    parser.add_argument("--precisions", nargs="+", default=["fp16", "int8"])
    options = parser.parse_args()
    python = environment()
    rows: list[dict[str, object]] = []
    for path in options.models:
        for precision in options.precisions:
            try:
                row = examine(path, precision, options, python)
            except Exception as error:
                text = (str(error) or "no message").splitlines()[0][:300]
                row = {"model": path.stem, "precision": precision, "parsed": False, "refused": text}
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
    shown = [{k: (str(v)[:60] if k == "refused" else v) for k, v in row.items()} for row in rows]
    print(common.table(shown))
    built = sum(bool(row.get("built")) for row in rows)
    print(f"{built} of {len(rows)} built for {options.target}")
    common.write_json(options.output / "trt_parse.json", {"rows": rows}, started)


if __name__ == "__main__":
    main()
