"""The PyTorch side of heal_speed.py: makes three models, exports them, and trains one on command.

    python benchmarks/torch_trainer.py export FOLDER
    python benchmarks/torch_trainer.py train FOLDER NAME THREADS BATCH     (then on stdin: steps a line)

Runs in an environment with torch. Prints one JSON line for each line it is sent.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

SHAPES = {"cnn": (3, 32, 32), "depthwise": (3, 64, 64), "transformer": (64, 192)}


class Basic(nn.Module):  # type: ignore[misc]
    """Two 3x3 convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        same = stride == 1 and inputs == outputs
        self.short = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.short(x))


class Inverted(nn.Module):  # type: ignore[misc]
    """Expand, depthwise, project (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 6 * inputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.same = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.same else self.body(x)


class Encoder(nn.Module):  # type: ignore[misc]
    """Self-attention and a feed-forward part, normalized before (Xiong et al. 2020)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, s, w = x.shape
        packed = self.qkv(self.first(x)).reshape(n, s, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = packed[0], packed[1], packed[2]
        weights = torch.softmax(q @ k.transpose(-1, -2) / (w // self.heads) ** 0.5, dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, s, w))
        return x + self.feed(self.second(x))


def model(name: str) -> nn.Module:
    """A seeded model, in inference mode: batch norms scale and shift, as they do in the exported graph."""
    torch.manual_seed(0)
    layers: list[nn.Module]
    if name == "cnn":
        layers = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        widths = [16, 16, 16, 32, 32, 32, 64, 64, 64]
        for before, width in zip([16, *widths], widths, strict=False):
            layers.append(Basic(before, width, 1 + (before != width)))
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    elif name == "depthwise":
        layers = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
        widths = [16, 24, 24, 32, 32, 64, 64, 96]
        for before, width in zip([16, *widths], widths, strict=False):
            layers.append(Inverted(before, width, 2 if width in (24, 32, 64) and before != width else 1))
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10)]
    else:
        layers = [*(Encoder(192, 3) for _ in range(4)), nn.LayerNorm(192), nn.Linear(192, 10)]
    return nn.Sequential(*layers).eval()


def export(folder: Path) -> None:
    """Writes NAME.onnx for the three."""
    for name, shape in SHAPES.items():
        torch.onnx.export(
            model(name), (torch.zeros(2, *shape),), str(folder / f"{name}.onnx"), opset_version=17,
            input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
            dynamo=False,
        )  # fmt: skip


def train(folder: Path, name: str, threads: int, batch: int) -> None:
    """As many steps as each line of stdin says: squared error to given targets, AdamW."""
    torch.set_num_threads(threads)
    net = model(name)
    with np.load(folder / f"{name}.npz") as data:
        x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    position = 0
    for line in sys.stdin:
        begun = time.perf_counter()
        value = 0.0
        for _ in range(int(line)):
            part = slice(position, position + batch)
            position = (position + batch) % (len(x) - batch + 1)
            loss = ((net(x[part]) - y[part]) ** 2).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            value = float(loss)
        answer(time.perf_counter() - begun, value)


def answer(seconds: float, loss: float) -> None:
    """One line for the parent."""
    found: dict[str, Any] = {"seconds": seconds, "loss": loss}
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "export":
        export(Path(sys.argv[2]))
    else:
        train(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
