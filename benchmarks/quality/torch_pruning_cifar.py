"""The PyTorch side of the table: a CIFAR ResNet pruned by Torch-Pruning, trained on for as long, exported.

    python -m venv .cache/pruning && .cache/pruning/bin/pip install torch==2.13.0 torch-pruning onnx numpy
    .cache/pruning/bin/python benchmarks/quality/torch_pruning_cifar.py MODEL.onnx --train T.npz --val V.npz \
        --macs 0.47 --minutes 20 --out pruned.onnx [--importance magnitude]

Called by `cifar.py --torch PYTHON`; nothing here imports condensec. The network is rebuilt from the weights
in the ONNX file: 3x3 convolutions with their norms folded, residual sums, and shortcuts that take every
second pixel and add channels of zeros; these are 1x1 convolutions with fixed weights here, which can be cut.
Groups are cut by global importance until the MACs fit (Fang et al. 2023, arXiv:2301.12900), with `--steps`
rounds of training in between where asked for. Training is condensec's: AdamW and one cycle, flips and crops,
cross-entropy with the labels and the divergence from the uncut network at temperature 2; the step size is the
best of three short trials, and the best weights on validation images are kept. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch_pruning as tp
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

RATES = (3e-4, 1e-3, 3e-3)
TRIAL = 0.03  # of the training time, for each step size
BATCH = 128
TEMPERATURE = 2.0
JUDGED = 1000  # validation images a round
FINEST = 400  # steps from whole to nothing


class Block(nn.Module):  # type: ignore[misc]
    """Two convolutions beside a shortcut."""

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.second = first, second
        inputs, outputs = first.in_channels, second.out_channels
        self.short: nn.Module = nn.Identity()
        if first.stride != (1, 1) or inputs != outputs:
            self.short = nn.Conv2d(inputs, outputs, 1, first.stride, bias=False)
            before = (outputs - inputs) // 2
            weight = torch.zeros(outputs, inputs, 1, 1)
            weight[before : before + inputs, :, 0, 0] = torch.eye(inputs)
            self.short.weight.data = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.short(x))


class ResNet(nn.Module):  # type: ignore[misc]
    """Stem, blocks, mean, classifier."""

    def __init__(self, convolutions: list[nn.Conv2d], classifier: nn.Linear) -> None:
        super().__init__()
        self.stem = convolutions[0]
        pairs = zip(convolutions[1::2], convolutions[2::2], strict=True)
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in pairs))
        self.classifier = classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.blocks(torch.relu(self.stem(x))).mean(dim=(2, 3)))


def rebuilt(path: Path) -> ResNet:
    """The network of an ONNX file: its convolutions in order, and its classifier."""
    model = onnx.load(path)
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    convolutions, classifier = [], None
    for node in model.graph.node:
        if node.op_type == "Conv":
            weight = torch.tensor(weights[node.input[1]])
            stride = next(a.ints[0] for a in node.attribute if a.name == "strides")
            size = weight.shape[-1]
            one = nn.Conv2d(weight.shape[1], weight.shape[0], size, stride, size // 2)
            one.weight.data, one.bias.data = weight, torch.tensor(weights[node.input[2]])
            convolutions.append(one)
        elif node.op_type == "Gemm":
            weight = torch.tensor(weights[node.input[1]])
            classifier = nn.Linear(weight.shape[1], weight.shape[0])
            classifier.weight.data, classifier.bias.data = weight, torch.tensor(weights[node.input[2]])
    assert classifier is not None, "no Gemm: not the network this was written for"
    return ResNet(convolutions, classifier)


class Data:
    """Images and labels."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            order = np.random.default_rng(0).permutation(len(arrays["labels"]))  # files are sorted by class
            self.x = torch.tensor(arrays["input"][order])
            self.labels = torch.tensor(arrays["labels"][order])

    def augmented(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """A random batch, flipped and shifted by up to four pixels."""
        index = rng.integers(0, len(self.x), BATCH)
        x = functional.pad(self.x[index], (4, 4, 4, 4))
        dx, dy = rng.integers(0, 9, 2)
        x = x[:, :, dy : dy + 32, dx : dx + 32]
        flip = torch.tensor(rng.random(BATCH) < 0.5)
        return torch.where(flip[:, None, None, None], x.flip(3), x), self.labels[index]


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, count: int | None = None) -> float:
    """Share of right answers on the first images."""
    model.eval()
    x, labels = data.x[:count], data.labels[:count]
    hits = [(model(x[i : i + 250]).argmax(1) == labels[i : i + 250]) for i in range(0, len(x), 250)]
    return float(torch.cat(hits).float().mean())


def train(
    model: nn.Module, teacher: nn.Module, data: Data, held: Data, seconds: float, rate: float, seed: int
) -> tuple[float, dict[str, Any], int]:
    """One cycle within a time; (validation accuracy, best weights, steps)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-4)
    rng = np.random.default_rng(seed)
    begun, steps = time.monotonic(), 0
    best = (accuracy(model, held, JUDGED), copy.deepcopy(model.state_dict()))
    judged = 0
    while (done := (time.monotonic() - begun) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, done / 0.05) * 0.5 * (1 + np.cos(np.pi * done))
        x, labels = data.augmented(rng)
        model.train()
        logits = model(x)
        with torch.no_grad():
            wanted = functional.softmax(teacher(x) / TEMPERATURE, 1)
        distance = functional.kl_div(
            functional.log_softmax(logits / TEMPERATURE, 1), wanted, reduction="batchmean"
        )
        loss = distance * TEMPERATURE**2 + functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        if int(10 * done) > judged:
            judged = int(10 * done)
            best = max(best, (accuracy(model, held, JUDGED), copy.deepcopy(model.state_dict())), key=_first)
    best = max(best, (accuracy(model, held, JUDGED), copy.deepcopy(model.state_dict())), key=_first)
    model.load_state_dict(best[1])
    return best[0], best[1], steps


def _first(pair: tuple[float, dict[str, Any]]) -> float:
    return pair[0]


def tried(model: nn.Module, teacher: nn.Module, data: Data, held: Data, seconds: float, seed: int) -> float:
    """The step size that does best in a short run."""
    found = {}
    for rate in RATES:
        found[rate] = train(copy.deepcopy(model), teacher, data, held, seconds, rate, seed)[0]
    return max(RATES, key=lambda rate: found[rate])


def macs(model: nn.Module) -> float:
    """Multiply-accumulates of one image, shortcuts included."""
    count, _ = tp.utils.count_ops_and_params(model, torch.zeros(1, 3, 32, 32))
    return float(count)


def importance(name: str) -> Any:
    """How units are ranked."""
    return {
        "magnitude": tp.importance.GroupMagnitudeImportance(p=2),
        "taylor": tp.importance.GroupTaylorImportance(),
        "random": tp.importance.RandomImportance(),
    }[name]


def main() -> None:
    options = _options()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    model, teacher = rebuilt(options.model), rebuilt(options.model).eval()
    data, held = Data(options.train), Data(options.val)
    whole, dense = macs(model), accuracy(teacher, held)
    begun = time.monotonic()
    pruner = tp.pruner.BasePruner(
        model, torch.zeros(1, 3, 32, 32), importance(options.importance), global_pruning=True,
        pruning_ratio=1.0, max_pruning_ratio=0.9, iterative_steps=FINEST,
        ignored_layers=[model.classifier],
    )  # fmt: skip
    seconds, trained, steps = 60 * options.minutes, 0.0, 0
    lr = None
    for number in range(1, options.steps + 1):
        goal = whole * (1 - (1 - options.macs) * number / options.steps)
        for _ in range(FINEST):
            if macs(model) <= goal:
                break
            if options.importance == "taylor":
                x, labels = data.augmented(np.random.default_rng(options.seed))
                model.zero_grad()
                functional.cross_entropy(model(x), labels).backward()
            pruner.step()
        cut = accuracy(model, held)
        last = number == options.steps
        share = (seconds - trained) * (1.0 if last else 0.5 / options.steps)
        if lr is None:
            lr = tried(model, teacher, data, held, TRIAL * seconds, options.seed)
            trained += 3 * TRIAL * seconds
            share = min(share, seconds - trained)
        _, _, count = train(model, teacher, data, held, share, lr, options.seed)
        trained, steps = trained + share, steps + count
    row = {
        "rate": round(steps * BATCH / (seconds * (1 - 3 * TRIAL))), "macs": macs(model) / whole,
        "params": sum(p.numel() for p in model.parameters()), "dense": dense,
        "cut": cut, "healed": accuracy(model, held), "lr": lr, "steps": steps,
        "seconds": round(time.monotonic() - begun),
    }  # fmt: skip
    model.eval()
    torch.onnx.export(
        model, (torch.zeros(2, 3, 32, 32),), str(options.out), input_names=["input"],
        output_names=["logits"], dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}}, dynamo=False,
    )  # fmt: skip
    print(json.dumps(row))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    for name in ("train", "val", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--macs", type=float, required=True, help="share that stays")
    parser.add_argument("--minutes", type=float, required=True, help="of training, trials included")
    parser.add_argument("--importance", choices=("magnitude", "taylor", "random"), default="magnitude")
    parser.add_argument("--steps", type=int, default=1, help="cuts, with training in between")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
