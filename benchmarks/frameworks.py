"""From PyTorch, Keras and scikit-learn to a condensed model, and back into use: Python, C++, web.

    python benchmarks/frameworks.py [--only pytorch keras sklearn] [--environments DIR] [--headers DIR]

For each framework: an environment of its own (made on first use, in `--environments`), the script of
examples/frameworks that trains and exports, one condensec command (half the multiply-accumulates, closed
form), and accuracy on pictures that nobody has seen. Then the last model runs in onnxruntime's Python, in a
C++ program built by CMake, and in onnxruntime-web under node, on the same input; their outputs are compared.
`--headers`: a folder with onnxruntime_cxx_api.h (onnxruntime's release archive, or Debian 13's
libonnxruntime-dev); without it the C++ program is left out, and the output says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import common
import numpy as np
import onnxruntime

EXAMPLES = Path(__file__).parents[1] / "examples"
COMMAND = str(Path(sys.executable).with_name("condensec"))
NEEDS = {
    "pytorch": ("torch", "onnx", "onnxscript", "numpy"),
    "keras": ("tensorflow-cpu", "tf2onnx"),
    "sklearn": ("scikit-learn", "skl2onnx"),
}
FLAGS = ["--target", "mobile-cpu", "--budget", "macs<=0.5x", "--max-drop", "6", "--heal", "closed-form"]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Output of a command; what it says goes on if it fails."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def python_of(name: str, folder: Path) -> Path:
    """The interpreter of a framework's environment."""
    python = folder / name / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", folder / name)
        run(python, "-m", "pip", "install", "-qq", *NEEDS[name])
    return python


def accuracy(model: Path, samples: Path) -> float:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    fixed = session.get_inputs()[0].shape[0] == 1
    with np.load(samples) as data:
        images, labels = data[name], data["labels"]
    parts = np.split(images, len(images)) if fixed else [images]
    return float(
        (np.concatenate([session.run(None, {name: x})[0] for x in parts]).argmax(1) == labels).mean()
    )


def from_framework(name: str, folder: Path, environments: Path) -> dict[str, Any]:
    """Train, export, condense; figures on unseen pictures."""
    started = time.monotonic()
    model = folder / f"{name}.onnx"
    run(
        python_of(name, environments),
        EXAMPLES / "frameworks" / f"from_{name}.py",
        folder / "train.npz",
        model,
    )
    exported = time.monotonic()
    data = {part: folder / f"{part}.npz" for part in ("train", "val", "test")}
    first = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"]).get_inputs()[0]
    if len(first.shape) == 2 or first.name != "image":  # the samples by the name and shape this input has
        for part, path in list(data.items()):
            with np.load(path) as arrays:
                image, labels = arrays["image"], arrays["labels"]
            data[part] = folder / f"{name}-{part}.npz"
            image = image.reshape(len(image), -1) if len(first.shape) == 2 else image
            np.savez(data[part], **{first.name: image, "labels": labels})
    out = folder / f"{name}.condensed"
    run(COMMAND, model, "--data", data["train"], "--val", data["val"], *FLAGS, "--output", out, "--no-cache")
    small = out / "mobile-cpu" / "model.onnx"
    return {
        "from": name,
        "bytes": model.stat().st_size,
        "condensed": small.stat().st_size,
        "accuracy": accuracy(model, data["test"]),
        "after": accuracy(small, data["test"]),
        "export s": exported - started,
        "condensec s": time.monotonic() - exported,
    }


def cpp(model: Path, folder: Path, headers: Path) -> str:
    """Build the C++ program against the Python package's library, and run it."""
    package = Path(str(find_spec("onnxruntime").submodule_search_locations[0]))  # type: ignore[union-attr, index]
    library = next(package.glob("capi/libonnxruntime.so.*"))
    (folder / "lib").mkdir(exist_ok=True)
    link = folder / "lib" / "libonnxruntime.so.1"  # the name it was linked under
    link.unlink(missing_ok=True)
    os.symlink(library, link)
    options = [f"-DONNXRUNTIME_INCLUDE={headers}", f"-DONNXRUNTIME_LIBRARY={link}"]
    run("cmake", "-S", EXAMPLES / "frameworks" / "cpp", "-B", folder / "cpp", *options)
    run("cmake", "--build", folder / "cpp")
    return run(folder / "cpp" / "classify", model).splitlines()[0]


def web(model: Path, folder: Path) -> str:
    """Install onnxruntime-web and run the model under node."""
    place = folder / "web"
    shutil.copytree(EXAMPLES / "frameworks" / "web", place, dirs_exist_ok=True)
    run("npm", "install", "--silent", cwd=place)
    shape = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"]).get_inputs()[0].shape
    return run("node", "classify.mjs", model, "x".join(map(str, shape)), cwd=place)


def into_use(model: Path, folder: Path, headers: Path | None) -> list[dict[str, Any]]:
    """The same input in three runtimes, and how far the outputs are from Python's."""
    outputs = {"python": run(sys.executable, EXAMPLES / "frameworks" / "run.py", model)}
    if headers is not None:
        outputs["c++"] = cpp(model, folder, headers)
    if shutil.which("npm"):
        outputs["web"] = web(model, folder)
    values = {name: np.array(text.split(), np.float64) for name, text in outputs.items()}
    rows = [
        {"in": name, "largest difference": float(abs(found - values["python"]).max()), "outputs": len(found)}
        for name, found in values.items()
    ]
    missing = {"c++": "no --headers", "web": "no npm"}
    return [*rows, *({"in": n, "left out": why} for n, why in missing.items() if n not in values)]


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="frameworks")
    parser.add_argument("--only", nargs="+", choices=NEEDS, default=list(NEEDS))
    parser.add_argument("--environments", type=Path, default=Path(".cache/frameworks"))
    parser.add_argument("--headers", type=Path)
    options = parser.parse_args()
    folder = (options.output / "work").absolute()
    run(sys.executable, EXAMPLES / "shapes.py", "-o", folder, "--train", "6000", "--epochs", "1")
    rows = [from_framework(name, folder, options.environments.absolute()) for name in options.only]
    print(common.table(rows), end="\n\n")
    last = folder / f"{options.only[0]}.condensed" / "mobile-cpu" / "model.onnx"
    used = into_use(last, folder, options.headers)
    print(common.table(used))
    common.write_json(options.output / "frameworks.json", {"from": rows, "used": used}, started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
