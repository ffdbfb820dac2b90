"""qemu-user with an arm64 Python, the aarch64 wheels of what is installed here, and a plugin that counts.

Everything is fetched from Debian and PyPI into `.cache/emulated`, without root, and once.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parent / ".cache" / "emulated"
QEMU = ("qemu-user", "libcapstone4", "liburing2")
ARM64 = (
    "libc6", "libstdc++6", "libgcc-s1", "zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5",
    "libsqlite3-0", "libuuid1", "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib",
)  # fmt: skip
# what the runtime looks at to choose its kernels: a Cortex-A76, and older ones without dot product and fp16
CORES = {
    "neoverse-n1": (
        "0xd0b",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp",
    ),
    "cortex-a72": ("0xd08", "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"),
    "cortex-a57": ("0xd07", "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"),
    "cortex-a53": ("0xd03", "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"),
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
