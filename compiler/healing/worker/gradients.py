"""Gradients of single samples with respect to some of the graph's parameters, collected without training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

# ruff: noqa: TID251 (these are this package's own modules, under whatever name it was started)
from .channel import Channel, write_npz
from .data import Batches
from .engine import Engine

_PROGRESS_EVERY = 0.5  # seconds between two progress lines


def collect(request: dict[str, Any], channel: Channel) -> None:
    """Write the gradients of each sample.

    Args:
        request: ``model``, ``behind``, ``before`` as for training, but with a loss that is a sum
            over samples; ``weights`` (.npz of parameters
            ``[batch, ...]``: each sample has its own copy), ``names``, ``samples`` (graph input -> .npy),
            ``batch``, ``threads`` and ``result``, the .npz to write: ``w0``, ... of shape ``[samples, n]``.
        channel: to the parent.
    """
    with np.load(request["weights"], allow_pickle=False) as stored:
        weights = {name: stored[f"w{i}"] for i, name in enumerate(request["names"])}
    gradients = {name: np.zeros_like(array) for name, array in weights.items()}
    size = int(request["batch"])
    parts: tuple[str, ...] = ("model", "behind", "before")
    files = {part: Path(request[part]) for part in parts if part in request}
    engine = Engine(files, weights, gradients, int(request["threads"]), size, size)
    batches = Batches(request["samples"], size, 0)
    found = {name: np.zeros((batches.count, array[0].size), np.float32) for name, array in weights.items()}
    done, told = 0, time.monotonic()
    for batch, new in batches.in_order():
        engine.step(batch)
        for name, rows in found.items():
            rows[done : done + new] = gradients[name][:new].reshape(new, -1)
        done += new
        if time.monotonic() - told > _PROGRESS_EVERY:
            told = time.monotonic()
            channel.send("progress", share=done / batches.count)
    write_npz(Path(request["result"]), {f"w{i}": rows for i, rows in enumerate(found.values())})
    channel.send("done", samples=done)
