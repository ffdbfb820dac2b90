"""MobileNetV2 and ResNet-18 as Torch-Pruning cuts them, beside the whole ones, as .onnx.

    python benchmarks/torch_pruning_cuts.py OUT [--round-to 16]

Run it in an environment of its own with `torch==2.13.0`, `onnx` and `torch-pruning==1.6.1` (neither is a
dependency of condensec); then `host_speed.py OUT/whole --beside OUT/cut --macs SHARE` with the share of
MACs it prints. Both nets are written out here in plain torch (Sandler et al. 2018, arXiv:1801.04381; He et
al. 2015, arXiv:1512.03385), with random weights: they are for time only.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

RATIOS = {"mobilenet_v2": 0.4, "resnet18": 0.5}  # of every layer's channels that go
EXPANDED = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def conv(
    ins: int, outs: int, size: int, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU6
) -> Any:
    layers: list[nn.Module] = [
        nn.Conv2d(ins, outs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outs),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


class Inverted(nn.Module):
    def __init__(self, ins: int, outs: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = ins * expand
        first = [conv(ins, inner, 1)] if expand > 1 else []
        self.body = nn.Sequential(
            *first, conv(inner, inner, 3, stride, inner), conv(inner, outs, 1, act=None)
        )
        self.residual = stride == 1 and ins == outs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class Basic(nn.Module):
    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(ins, outs, 3, stride, act=nn.ReLU), conv(outs, outs, 3, act=None))
        self.skip = conv(ins, outs, 1, stride, act=None) if stride > 1 or ins != outs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]


def mobilenet_v2() -> nn.Module:
    blocks, ins = [conv(3, 32, 3, 2)], 32
    for expand, outs, count, stride in EXPANDED:
        for i in range(count):
            blocks.append(Inverted(ins, outs, stride if i == 0 else 1, expand))
            ins = outs
    return nn.Sequential(*blocks, conv(ins, 1280, 1), *head(1280))


def resnet18() -> nn.Module:
    blocks: list[nn.Module] = [conv(3, 64, 7, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
    ins = 64
    for outs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [Basic(ins, outs, stride), Basic(outs, outs, 1)]
        ins = outs
    return nn.Sequential(*blocks, *head(512))


def save(model: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    model.eval()
    torch.onnx.export(model, torch.zeros(1, 3, 224, 224), str(path), opset_version=17, dynamo=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--round-to", type=int, default=16)
    options = parser.parse_args()
    for build in (mobilenet_v2, resnet18):
        torch.manual_seed(0)
        model, example = build().eval(), torch.zeros(1, 3, 224, 224)
        name = f"{build.__name__}.onnx"
        save(model, options.out / "whole" / name)
        whole, _ = tp.utils.count_ops_and_params(model, example)
        pruner = tp.pruner.MagnitudePruner(
            model,
            example,
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=RATIOS[build.__name__],
            ignored_layers=[layer for layer in model.modules() if isinstance(layer, nn.Linear)],
            round_to=options.round_to,
        )
        pruner.step()
        left, _ = tp.utils.count_ops_and_params(model, example)
        save(model, options.out / "cut" / name)
        print(f"{name}: {left / whole:.4f} of the MACs left")


if __name__ == "__main__":
    main()
