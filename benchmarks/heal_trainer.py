"""The condensec side of heal_speed.py: trains one graph on command, with the healing worker's own engine.

    python -I benchmarks/heal_trainer.py WORKER_FOLDER JOB_FOLDER THREADS BATCH    (then on stdin: steps)

Runs in the worker's environment. JOB_FOLDER holds forward.onnx, weights.npz and an .npy for each input.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np


def worker(folder: str) -> Any:
    """The worker's modules, as `condensec.healing.client` starts them."""
    spec = importlib.util.spec_from_file_location(
        "heal_worker", f"{folder}/__init__.py", submodule_search_locations=[folder]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["heal_worker"] = module
    spec.loader.exec_module(module)
    return module


def improved(model: bytes, path: Path, block: int) -> bytes:
    """The gradient graph, as the parent writes it anew."""
    path.write_bytes(model)
    print(json.dumps({"gradient": str(path), "block": block}), flush=True)
    sys.stdin.readline()
    return path.read_bytes()


def serve() -> None:
    """Train as asked until there is nobody to ask."""
    worker(sys.argv[1])
    from heal_worker import blocks  # type: ignore[import-not-found]
    from heal_worker.channel import peak_rss_mb  # type: ignore[import-not-found]
    from heal_worker.data import Batches  # type: ignore[import-not-found]
    from heal_worker.engine import Engine  # type: ignore[import-not-found]
    from heal_worker.optimizer import Flat, Optimizer, Settings  # type: ignore[import-not-found]

    first = sys.stdin.readline()  # before the graph is asked for: what is read next must be that it's written
    job = Path(sys.argv[2])
    names = json.loads((job / "job.json").read_text())
    with np.load(job / "weights.npz") as stored:
        weights = Flat({name: stored[f"w{i}"] for i, name in enumerate(names["weights"])})
    gradients = weights.like()
    threads, batch = int(sys.argv[3]), int(sys.argv[4])
    engine = Engine(
        {"model": job / "forward.onnx"}, weights.views, gradients.views, threads, names["part"], batch,
        lambda model: improved(model, job / "gradient.onnx", blocks.size(names["trials"])),
        lambda why: print(why, file=sys.stderr),
    )  # fmt: skip
    optimizer = Optimizer(weights, gradients, Settings(), 0.99, threads=threads)
    data = Batches(names["data"], batch, 0)
    epoch = 0
    batches = data.epoch(epoch)
    for line in chain([first], sys.stdin):
        begun = time.perf_counter()
        loss = 0.0
        for _ in range(int(line)):
            batch = next(batches, None)
            if batch is None:
                epoch += 1
                batches = data.epoch(epoch)
                batch = next(batches)
            loss = engine.step(batch)
            optimizer.step(0.5, optimizer.gradient_norm())
        found = {"seconds": time.perf_counter() - begun, "loss": loss, "peak_mb": peak_rss_mb()}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    serve()
