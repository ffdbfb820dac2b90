"""ARM and older x86 processors under qemu: do graphs run there, and how many instructions do they take?

    python benchmarks/emulated.py compare MODEL.onnx ...      mobile-cpu graphs on both, outputs side by side
    python benchmarks/emulated.py check MODEL.onnx ...   whole models: counted, and predicted by the table
    python benchmarks/emulated.py table MODEL.onnx ... --to F    instructions of these models' nodes
    python benchmarks/emulated.py profile MODEL.onnx --cpu Haswell-noTSX --target x86-avx2 --to F

Sets itself up in `.cache/emulated` (Debian and PyPI only, no root needed): qemu-user, an arm64 Python with
the aarch64 wheels of the installed numpy and onnxruntime, and a plugin that counts instructions (compiled
with gcc). `profile` also takes x86 models of processors: then this environment itself runs under qemu.
Counts repeat within 0.5%; how well they stand for time was only checked on x86.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np

HERE = Path(__file__).parent
CACHE = HERE.parent / ".cache" / "emulated"
QEMU = ("qemu-user", "libcapstone4", "liburing2")
ARM64 = (
    "libc6", "libstdc++6", "libgcc-s1", "zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5",
    "libsqlite3-0", "libuuid1", "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib",
)  # fmt: skip
# what the runtime looks at to choose its kernels: a Cortex-A76, and a Cortex-A72 without dot product and fp16
CORES = {
    "neoverse-n1": (
        "0xd0b",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp",
    ),
    "cortex-a72": ("0xd08", "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"),
}
TARGET_CORES = {"mobile-cpu": "neoverse-n1", "mobile-cpu-v8.0": "cortex-a72"}
RUN = """
import sys, numpy, onnxruntime
feeds = dict(numpy.load(sys.argv[2]))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
raw = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
names = [o.name for o in raw.get_outputs()]
feeds = {i.name: feeds[i.name] for i in raw.get_inputs()}
numpy.savez(sys.argv[3], **{f"o{i}": v for i, v in enumerate(raw.run(names, feeds))})
if len(sys.argv) > 4:
    import mmap, struct
    file = open(sys.argv[4], "r+b")
    room = mmap.mmap(file.fileno(), 8)
    count = lambda: struct.unpack("<Q", room[:8])[0]
    before = count(); raw.run(names, feeds); raw.run(names, feeds); after = count()
    print("counted", (after - before) / 2)
"""


def shell(*command: str | Path, **options: object) -> None:
    """Run a command; its output is shown only if it fails."""
    text = list(map(str, command))
    done = subprocess.run(text, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-400:]}")


@dataclass(frozen=True)
class Emulator:
    """qemu with what it needs.

    Attributes:
        folder: of everything downloaded.
        cpu: qemu's name of a processor.
    """

    folder: Path
    cpu: str

    @property
    def arm(self) -> bool:
        return self.cpu in CORES

    def run(self, *arguments: str | Path, counter: Path | None = None, timeout: float = 3600) -> str:
        """Run Python inside; returns what it printed."""
        binary = self.folder / "qemu/usr/bin" / ("qemu-aarch64" if self.arm else "qemu-x86_64")
        command: list[str | Path] = [
            binary,
            "-cpu",
            self.cpu,
            "-E",
            "LD_LIBRARY_PATH=",
            "-E",
            "PYTHONHASHSEED=0",
        ]
        python: str | Path = sys.executable
        if self.arm:
            root = self.folder / self.cpu
            command += ["-L", root, "-E", f"PYTHONPATH={self.folder / 'site'}"]
            python = root / "usr/bin/python3.11"
        if counter is not None:
            counter.write_bytes(bytes(8))
            command += ["-plugin", f"{self.folder / 'libinstructions.so'},counter={counter}"]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(self.folder / "qemu/usr/lib/x86_64-linux-gnu")}
        done = subprocess.run(
            [*map(str, command), str(python), *map(str, arguments)],
            capture_output=True, text=True, check=False, env=environment, timeout=timeout,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(
                (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit {done.returncode}"]
            )
        return done.stdout


def setup(cpu: str, folder: Path = CACHE) -> Emulator:
    """Fetch and unpack what is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "qemu").is_dir():
        debian(folder, "amd64", QEMU, folder / "qemu")
    if not (folder / "libinstructions.so").is_file():
        shell("gcc", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-o", folder / "libinstructions.so",
              HERE / "instructions.c")  # fmt: skip
    if cpu not in CORES:
        return Emulator(folder, cpu)
    root = folder / cpu
    if not root.is_dir():
        debian(folder, "arm64", ARM64, root)
        part, features = CORES[cpu]
        (root / "proc").mkdir()
        (root / "proc/cpuinfo").write_text(
            f"processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: {features}\nCPU implementer\t: 0x41\n"
            f"CPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: {part}\nCPU revision\t: 1\n\n"
        )
    if not (folder / "site").is_dir():
        wheels(folder / "site")
    return Emulator(folder, cpu)


def debian(folder: Path, architecture: str, packages: tuple[str, ...], into: Path) -> None:
    """Unpack Debian packages of another architecture, with an apt of their own."""
    apt = folder / f"apt-{architecture}"
    for name in (
        "etc/apt.conf.d",
        "etc/preferences.d",
        "state/lists/partial",
        "cache/archives/partial",
        "debs",
    ):
        (apt / name).mkdir(parents=True, exist_ok=True)
    (apt / "state/status").touch()
    key = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (apt / "etc/sources.list").write_text(
        f"deb [signed-by={key}] http://deb.debian.org/debian bookworm main\n"
    )
    (apt / "apt.conf").write_text(
        f'Dir "{apt}"; Dir::Etc "etc"; Dir::State "state"; Dir::State::status "{apt}/state/status";\n'
        f'Dir::Cache "cache"; APT::Architecture "{architecture}";\n'
        f'APT::Architectures {{ "{architecture}"; }};\n'
        'APT::Sandbox::User "";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(apt / "apt.conf")}
    shell("apt-get", "-qq", "update", env=environment)
    shell("apt-get", "-qq", "download", *packages, env=environment, cwd=apt / "debs")
    draft = into.with_name(into.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    for package in sorted((apt / "debs").glob("*.deb")):
        shell("dpkg-deb", "-x", package, draft)
    draft.rename(into)
    shutil.rmtree(apt)


def wheels(site: Path) -> None:
    """The aarch64 wheels of the numpy and onnxruntime that are installed here."""
    with tempfile.TemporaryDirectory() as name:
        wanted = [f"{p}=={importlib.metadata.version(p)}" for p in ("numpy", "onnxruntime")]
        versions = ("manylinux_2_28", "manylinux_2_27", "manylinux2014")
        tags = [flag for version in versions for flag in ("--platform", f"{version}_aarch64")]
        shell(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *tags,
              "--python-version", "311", "-d", name, *wanted)  # fmt: skip
        draft = site.with_name("site.draft")
        shutil.rmtree(draft, ignore_errors=True)
        for wheel in Path(name).glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(draft)
        draft.rename(site)


# ------------------------------------------------------------------------------------------- (a) outputs


def compare(options: argparse.Namespace) -> list[dict[str, object]]:
    """Each model's graph for a target, here and there."""
    from condensec import data, io
    from condensec.hardware import bench
    from condensec.hardware import emit as emission
    from condensec.hardware.target import get
    from condensec.probe import runnable_shapes

    machine, target = setup(TARGET_CORES[options.target]), get(options.target)
    rows: list[dict[str, object]] = []
    for path in options.models:
        started = time.monotonic()
        row: dict[str, object] = {"model": path.stem, "precision": options.precision}
        try:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                signature = io.signature(io.load(path))
                samples = data.synthetic(
                    signature, seed=options.seed, shapes=runnable_shapes(path, signature, {})
                )
                made = emission.emit(
                    io.load(path), target, folder, precision=options.precision, samples=samples
                )
                feeds = bench.make_feeds(made.path)
                np.savez(folder / "feeds.npz", **feeds)
                runner = common.session(made.path)
                names = [output.name for output in runner.get_outputs()]
                here = runner.run(names, {i.name: feeds[i.name] for i in runner.get_inputs()})
                (folder / "run.py").write_text(RUN)
                machine.run(folder / "run.py", made.path, folder / "feeds.npz", folder / "there.npz")
                there = np.load(folder / "there.npz")
                row |= outputs_apart(here, [there[f"o{i}"] for i in range(len(here))])
                row["precision"] = made.precision
        except Exception as error:
            row["refused"] = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        row["s"] = round(time.monotonic() - started, 1)
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def outputs_apart(here: list[np.ndarray], there: list[np.ndarray]) -> dict[str, object]:
    """Largest difference over the largest output, of all outputs; and the smallest cosine."""
    worst, cosine = 0.0, 1.0
    for a, b in zip(here, there, strict=True):
        if a.dtype.kind != "f" or not a.size:
            worst = max(worst, float(not np.array_equal(a, b)))
            continue
        x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        worst = max(worst, float(np.abs(x - y).max() / max(1e-12, np.abs(x).max())))
        cosine = min(cosine, float(x @ y / max(1e-30, np.linalg.norm(x) * np.linalg.norm(y))))
    return {"largest difference": worst, "cosine": cosine}


# ------------------------------------------------------------------------------------------- (b) instructions


SEEDS = {  # kernel, stride, depthwise, channels, pixels a side
    "conv3": (3, 1, False, (32, 64, 160), (7, 14, 28, 40)),
    "conv3s2": (3, 2, False, (32, 64, 160), (14, 28, 40)),
    "conv1": (1, 1, False, (32, 96, 240), (1, 7, 14, 28, 40)),
    "conv1s2": (1, 2, False, (64, 160), (14, 28)),
    "conv5": (5, 1, False, (32, 80), (7, 14, 28)),
    "dw3": (3, 1, True, (32, 96, 240), (7, 14, 28, 40)),
    "dw3s2": (3, 2, True, (32, 96, 240), (14, 28, 40)),
    "dw5": (5, 1, True, (48, 144), (7, 14, 28)),
}


EACH = (  # operators on every element, with one operand or two
    "Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Erf", "Exp", "Sqrt", "Neg", "Elu",
    "Softplus", "Add", "Mul", "Sub", "Div",
)  # fmt: skip
SHAPES = ((1, 48, 8, 8), (1, 96, 28, 28), (1, 197, 384))


def elementwise(folder: Path) -> Path:
    """A model of single operators side by side."""
    import onnx
    from onnx import TensorProto, helper

    nodes, inputs, outputs = [], [], []
    for op in EACH:
        for i, shape in enumerate(SHAPES):
            names = [f"{op}_{i}_{part}" for part in ("a", "b")[: 1 + (op in ("Add", "Mul", "Sub", "Div"))]]
            nodes.append(helper.make_node(op, names, [f"{op}_{i}"], name=f"{op}_{i}"))
            inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]
            outputs.append(helper.make_tensor_value_info(f"{op}_{i}", TensorProto.FLOAT, shape))
    graph = helper.make_graph(nodes, "each", inputs, outputs)
    path = folder / "each.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def seeds(folder: Path) -> list[Path]:
    """Models of single convolutions side by side, for batch 1: sizes that the given models don't have."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    made = [elementwise(folder)]
    for name, (kernel, stride, depthwise, channels, sides) in SEEDS.items():
        nodes, inputs, outputs, weights = [], [], [], []
        for c in channels:
            for side in sides:
                x, w, y, z = (f"{part}_{c}_{side}" for part in "xwyz")
                shape = (c, 1 if depthwise else c, kernel, kernel)
                weights.append(numpy_helper.from_array(np.full(shape, 0.01, np.float32), w))
                nodes.append(
                    helper.make_node(
                        "Conv",
                        [x, w],
                        [y],
                        name=y,
                        strides=[stride] * 2,
                        pads=[kernel // 2] * 4,
                        group=c if depthwise else 1,
                    )
                )
                nodes.append(helper.make_node("Relu", [y], [z], name=z))
                out = -(-side // stride)
                inputs.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, c, side, side]))
                outputs.append(helper.make_tensor_value_info(z, TensorProto.FLOAT, [1, c, out, out]))
        graph = helper.make_graph(nodes, name, inputs, outputs, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        made.append(folder / f"{name}.onnx")
        onnx.save(model, made[-1])
    return made


def pieces_of(models: list[Path], target: str, seed: int) -> dict[str, object]:
    """The packed nodes of several models: own widths of all, other widths drawn at random."""
    from condensec.hardware import pack
    from condensec.hardware.latency import GraphModel
    from condensec.hardware.target import get

    rng = np.random.default_rng(seed)
    found: dict[object, pack.Piece] = {}
    for path in models:
        try:
            made = pack.pieces(GraphModel(get(target), path, None))
        except Exception as error:
            print(f"{path.name}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        fresh = [piece for piece in made if piece.key not in found]
        weighted = [p for p in fresh if p.key.weighted]
        kept = [weighted[i] for i in rng.permutation(len(weighted))[:40]]
        for piece in [p for p in fresh if not p.key.weighted] + kept:
            found.setdefault(piece.key, piece)
    return pack.packed(list(found.values()), {}, target, "", "")


def count(options: argparse.Namespace) -> list[dict[str, object]]:
    """A table of instructions from the nodes of models."""
    from condensec.hardware import pack

    machine = setup(TARGET_CORES[options.target])
    with tempfile.TemporaryDirectory() as name:
        models = [*options.models, *(seeds(Path(name)) if options.seeds else [])]
        document = pieces_of(models, options.target, options.seed)
    print(f"{len(document['nodes'])} nodes", file=sys.stderr)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as name:
        script, counter, out = (Path(name) / n for n in ("on_device.py", "counter", "table.json"))
        pack.write_script(script, document)
        machine.run(script, "-o", out, "--counter", counter, counter=counter, timeout=7200)
        table = json.loads(out.read_text())
    table["device"] |= {"cpu": machine.cpu, "emulator": "qemu-user"}
    points = dict(json.loads(options.to.read_text())["points"]) if options.add and options.to.exists() else {}
    points |= {key: round(value) for key, value in table["points"].items()}
    table["points"] = dict(sorted(points.items()))
    options.to.write_text(json.dumps(table, indent=0) + "\n")
    return [{"file": options.to.name, "points": len(table["points"]), "failed": len(table["failed"])}]


def check(options: argparse.Namespace) -> list[dict[str, object]]:
    """Whole models: instructions counted against what the target's table predicts."""
    from condensec.hardware import bench, devicetable
    from condensec.hardware.latency import latency_model
    from condensec.hardware.target import get

    machine, target = setup(TARGET_CORES[options.target]), get(options.target)
    if options.to is not None:
        target = devicetable.attach(target, options.to)
    unit = 2.0 * target.peak.clock_ghz * 1e9
    rows: list[dict[str, object]] = []
    for path in options.models:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            np.savez(folder / "feeds.npz", **bench.make_feeds(path))
            (folder / "run.py").write_text(RUN)
            arguments = (folder / "run.py", path, folder / "feeds.npz", folder / "o.npz", folder / "counter")
            try:
                said = machine.run(*arguments, counter=folder / "counter")
            except RuntimeError as error:
                print(path.name, error, file=sys.stderr)
                continue
        counted = float(said.split("counted")[1])
        predicted = latency_model(target, path).dense_seconds * unit
        row = {
            "model": path.stem,
            "counted": counted,
            "predicted": predicted,
            "error %": 100 * (predicted / counted - 1),
        }
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    errors = np.abs([float(str(row["error %"])) for row in rows])
    rows.append({"model": "median", "error %": float(np.median(errors)) if len(errors) else float("nan")})
    return rows


def profile(options: argparse.Namespace) -> list[dict[str, object]]:
    """One model's table on another processor."""
    from condensec.hardware import profile as timing
    from condensec.hardware.target import get

    machine = setup(options.cpu or TARGET_CORES[options.target])
    with tempfile.TemporaryDirectory() as name:
        script, counter = Path(name) / "on_device.py", Path(name) / "counter"
        timing.script(get(options.target), options.models[0], script)
        machine.run(script, options.models[0], "-o", options.to, "--counter", counter, counter=counter)
    table = json.loads(options.to.read_text())
    return [
        {"file": str(options.to), "points": len(table["points"]), "instructions": table["model"]["value"]}
    ]


def main() -> None:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="emulated")
    parser.add_argument("what", choices=["compare", "check", "table", "profile"])
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--target", default="mobile-cpu")
    parser.add_argument("--cpu", help="qemu's name of a processor; default: the target's")
    parser.add_argument("--precision", default="none", help="compare: none, int8 or fp16")
    parser.add_argument("--seeds", action="store_true", help="table: and convolutions of many sizes")
    parser.add_argument("--add", action="store_true", help="table: keep what the file holds already")
    parser.add_argument("--to", type=Path, help="file for the table (check: the table to check)")
    options = parser.parse_args()
    if options.what in ("table", "profile") and options.to is None:
        parser.error("say where to write the table: --to FILE")
    made = {"compare": compare, "check": check, "table": count, "profile": profile}[options.what](options)
    print(common.table(made))
    common.write_json(options.output / f"emulated_{options.what}.json", {"rows": made}, started)


if __name__ == "__main__":
    main()
