"""The tutorial's network pruned by Torch-Pruning in PyTorch, trained on as long as condensec took.

    python -m venv .cache/pruning && .cache/pruning/bin/pip install torch==2.13.0 torch-pruning onnx numpy
    .cache/pruning/bin/python benchmarks/quality/torch_pruning_shapes.py FOLDER --macs 0.31 --seconds 110

FOLDER is where `examples/shapes.py` wrote. Same data to train on, same data to choose the best epoch by, and
the same unseen pictures for the result, which `condensec check ... --data test.npz` gives for condensec's.
Groups are cut by global importance until the MACs fit; training is AdamW with one cosine, cross-entropy with
the labels and the divergence from the uncut network at temperature 2. Nothing here imports condensec. Prints
one JSON line.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import onnx
import torch
import torch_pruning as tp
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

BATCH, TEMPERATURE, STEPS = 128, 2.0, 400


def network(path: Path) -> nn.Sequential:
    """The network in the ONNX file: linear layers with ReLU between."""
    weights = {
        w.name: torch.from_numpy(numpy_helper.to_array(w).copy()) for w in onnx.load(path).graph.initializer
    }
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(len(weights) // 2):
        weight = weights[f"fc{i}.weight"]
        layer = nn.Linear(*weight.shape)
        layer.weight.data, layer.bias.data = weight.T.contiguous(), weights[f"fc{i}.bias"]
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def data(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    with np.load(path) as arrays:
        return torch.from_numpy(arrays["image"]), torch.from_numpy(arrays["labels"])


@torch.no_grad()
def accuracy(model: nn.Module, samples: tuple[torch.Tensor, torch.Tensor]) -> float:
    return float((model(samples[0]).argmax(1) == samples[1]).float().mean())


def cut(model: nn.Sequential, importance: str, macs: float) -> None:
    """Global pruning in small steps until at most this share of the MACs is left."""
    example = torch.zeros(1, 1, 24, 24)
    kind = {"magnitude": tp.importance.MagnitudeImportance, "taylor": tp.importance.TaylorImportance}[
        importance
    ]
    pruner = tp.pruner.MetaPruner(
        model, example, importance=kind(), global_pruning=True, pruning_ratio=0.97, iterative_steps=STEPS,
        ignored_layers=[model[-1]],
    )  # fmt: skip
    whole, _ = tp.utils.count_ops_and_params(model, example)
    for _ in range(STEPS):
        if tp.utils.count_ops_and_params(model, example)[0] <= macs * whole:
            return
        pruner.step()


def train(model: nn.Module, teacher: nn.Module, folder: Path, seconds: float) -> nn.Module:
    """Train for so long; the weights that are best on the validation samples."""
    images, labels = data(folder / "train.npz")
    held = data(folder / "val.npz")
    with torch.no_grad():
        wanted = torch.cat([teacher(part) for part in images.split(1024)])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    best, found, started = copy.deepcopy(model), accuracy(model, held), time.monotonic()
    while (passed := (time.monotonic() - started) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * passed))
        for index in torch.randperm(len(images)).split(BATCH):
            out = model(images[index])
            p, q = (torch.log_softmax(x / TEMPERATURE, 1) for x in (out, wanted[index]))
            divergence = functional.kl_div(p, q, reduction="batchmean", log_target=True) * TEMPERATURE**2
            loss = functional.cross_entropy(out, labels[index]) + divergence
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if (now := accuracy(model, held)) > found:
            best, found = copy.deepcopy(model), now
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description="Torch-Pruning on the tutorial's network.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--macs", type=float, default=0.31)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--importance", choices=("magnitude", "taylor"), default="magnitude")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(2)
    teacher = network(options.folder / "shapes.onnx").eval()
    model, test = copy.deepcopy(teacher), data(options.folder / "test.npz")
    if options.importance == "taylor":  # it looks at gradients
        images, labels = data(options.folder / "train.npz")
        functional.cross_entropy(model(images[:2048]), labels[:2048]).backward()
    cut(model, options.importance, options.macs)
    pruned = accuracy(model, test)
    model = train(model, teacher, options.folder, options.seconds).eval()
    one = torch.zeros(1, 1, 24, 24)
    macs = tp.utils.count_ops_and_params(model, one)[0] / tp.utils.count_ops_and_params(teacher, one)[0]
    widths = [layer.out_features for layer in model if isinstance(layer, nn.Linear)]
    figures = {"before": accuracy(teacher, test), "pruned": pruned, "after": accuracy(model, test)}
    print(json.dumps({"importance": options.importance, "macs": macs, "widths": widths, **figures}))


if __name__ == "__main__":
    main()
