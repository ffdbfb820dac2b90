#!/usr/bin/env python3
"""Times the nodes of a model on the device this runs on, for condensec.

    python3 profile_device.py [MODEL.onnx] [-o table.json]

Needs only Python 3.8, numpy and onnxruntime. `condensec profile MODEL --target T --script FILE` wrote this
file; the model's nodes are packed inside, without weights. With the model itself as an argument the whole is
timed, too, so that the nodes' sum can be calibrated. Bring the table back:
`condensec MODEL --target T --table table.json`.
"""

from __future__ import annotations

import argparse
import base64
import json
import mmap
import os
import platform
import struct
import sys
import tempfile
import time
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

if TYPE_CHECKING:  # the script runs on Python 3.8, too: nothing of these at run time
    from collections.abc import Callable, Sequence

PACKED = ""  # zlib + base64 of the JSON that `condensec.hardware.pack` makes

SECONDS = 0.03  # of sampling a node
SHORT = 3e-4  # of one sample: below it the clock's own cost would show
LINE = 64  # bytes of a cache line
LAYOUT = ("ReorderInput", "ReorderOutput")  # neighbours share the layout: no part of a node's time
CPU = "CPUExecutionProvider"


def unpack(text: str) -> dict[str, Any]:
    """What was packed."""
    found: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(text)))
    return found


def array_of(spec: dict[str, Any]) -> np.ndarray[Any, Any]:
    """A feed: given values, or harmless numbers (no denormals), at the start of a cache line."""
    dtype, shape = np.dtype(spec["dtype"]), tuple(spec["shape"])
    size = int(np.prod(shape))
    if "values" in spec:
        values = np.array(spec["values"], dtype)
    elif dtype.kind == "f":
        values = ((np.arange(size, dtype=np.int64) % 17 - 8) * 0.1 + 0.05).astype(dtype)
    else:
        values = np.zeros(size, dtype)
    room = np.empty(size * dtype.itemsize + LINE, np.uint8)
    start = -room.ctypes.data % LINE
    array: np.ndarray[Any, Any] = room[start : start + size * dtype.itemsize].view(dtype)
    array[...] = values.reshape(-1)
    return array.reshape(shape)


def session(model: Any, provider: str, threads: int, profile: str = "") -> Any:
    """A session as it would be opened in production."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    providers = [provider] if provider == CPU else [provider, CPU]
    return onnxruntime.InferenceSession(model, options, providers=providers)


def quickest(call: Callable[[], Any], clock: Callable[[], float], seconds: float) -> float:
    """Best sample of a call: whatever else runs can only add to it."""
    call()
    start = time.perf_counter()
    call()
    once = max(time.perf_counter() - start, 1e-7)
    count = max(1, min(1000, round(SHORT / once)))
    best, deadline, done = float("inf"), time.perf_counter() + seconds, 0
    while done < 5 or time.perf_counter() < deadline:
        before = clock()
        for _ in range(count):
            call()
        best = min(best, (clock() - before) / count)
        done += 1
    return best


def counted(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Counts of instructions repeat: once to warm up, twice to count."""
    call()
    before = clock()
    call()
    call()
    return (clock() - before) / 2


def layout_share(item: dict[str, Any], feeds: dict[str, Any], threads: int) -> float:
    """Share of the time that goes into changing the layout, by onnxruntime's own profiler."""
    with tempfile.TemporaryDirectory() as folder:
        raw = session(base64.b64decode(item["onnx"]), CPU, threads, os.path.join(folder, "p"))
        for _ in range(10):
            raw.run(None, feeds)
        with open(raw.end_profiling(), encoding="utf-8") as file:
            events = json.load(file)
    spent = [
        (event["args"].get("op_name"), event["dur"])
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    whole = sum(duration for _, duration in spent)
    return sum(duration for op, duration in spent if op in LAYOUT) / whole if whole else 0.0


class Meter:
    """How one call is measured: by a clock, or by a counter of instructions in a file."""

    def __init__(self, provider: str, threads: int, counter: str | None, seconds: float) -> None:
        self.seconds, self.counter = seconds, counter
        self.clock: Callable[[], float] = time.perf_counter
        if counter is not None:
            with open(counter, "r+b") as file:
                room = mmap.mmap(file.fileno(), 8)
            self.clock = lambda: float(struct.unpack("<Q", room[:8])[0])
        elif provider == CPU and threads == 1 and hasattr(time, "thread_time"):
            self.clock = time.thread_time

    def __call__(self, call: Callable[[], Any]) -> float:
        """What one call takes."""
        if self.counter is not None:
            return counted(call, self.clock)
        return quickest(call, self.clock, self.seconds)


def run(
    packed: dict[str, Any],
    model: str | None,
    provider: str,
    threads: int,
    meter: Meter,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure everything; the table as a document."""
    points: dict[str, float] = {}
    failed: dict[str, str] = {}
    blocked = provider == CPU and platform.machine().lower() in ("x86_64", "amd64")
    empty = meter(_caller(packed["empty"], provider, threads))
    for number, item in enumerate(packed["nodes"]):
        if not quiet and number % 20 == 0:
            print(f"{number} of {len(packed['nodes'])}", end="\r", file=sys.stderr)
        try:
            feeds = {feed["name"]: array_of(feed) for feed in item["feeds"]}
            taken = max(0.0, meter(_caller(item, provider, threads, feeds)) - empty)
            if blocked and "Conv" in item["op"]:
                taken *= 1 - layout_share(item, feeds, threads)
            points[item["key"]] = taken
        except Exception as error:  # a kernel this build hasn't: the table says so and goes on
            failed[item["key"]] = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    whole = None
    if model is not None:
        feeds = {feed["name"]: array_of(feed) for feed in packed["feeds"]}
        raw = session(model, provider, threads)
        whole = meter(lambda: raw.run(None, feeds))
    return {
        "schema": 1,
        "kind": "condensec latency table",
        "target": packed["target"],
        "how": "emulated" if meter.counter is not None else "measured",
        "unit": "instructions" if meter.counter is not None else "seconds",
        "device": device(provider, threads),
        "model": {"name": packed["model"], "sha256": packed["sha256"], "value": whole},
        "points": points,
        "failed": failed,
    }


def _caller(
    item: dict[str, Any], provider: str, threads: int, feeds: dict[str, Any] | None = None
) -> Callable[[], Any]:
    raw = session(base64.b64decode(item["onnx"]), provider, threads)
    given = {feed["name"]: array_of(feed) for feed in item["feeds"]} if feeds is None else feeds
    return lambda: raw.run(None, given)


def device(provider: str, threads: int) -> dict[str, Any]:
    """Where this runs."""
    return {
        "machine": platform.machine(),
        "cpu": _cpu(),
        "system": platform.system(),
        "onnxruntime": onnxruntime.__version__,
        "provider": provider,
        "threads": threads,
    }


def _cpu() -> str:
    names: list[str] = []
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() in ("model name", "Hardware", "CPU part") and value.strip() not in names:
                    names.append(value.strip())
    except OSError:
        pass
    return ", ".join(names) or platform.processor()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", help="the model itself: calibrates the table")
    parser.add_argument("-o", "--output", help="file for the table; default: standard output")
    parser.add_argument("--provider", default=CPU, help="execution provider; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--counter", help=argparse.SUPPRESS)  # a file where an emulator counts instructions
    options = parser.parse_args(arguments)
    if not PACKED:
        parser.error("nothing is packed in this file; let 'condensec profile MODEL --script FILE' write one")
    if options.provider not in onnxruntime.get_available_providers():
        parser.error("this onnxruntime has " + ", ".join(onnxruntime.get_available_providers()))
    if options.model is not None and not os.path.isfile(options.model):
        parser.error(f"there is no file {options.model}")
    meter = Meter(options.provider, options.threads, options.counter, SECONDS)
    found = run(unpack(PACKED), options.model, options.provider, options.threads, meter)
    text = json.dumps(found, indent=1)
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
