"""PyTorch to ONNX: trains a small convolutional network on pictures and exports it.

pip install torch onnx onnxscript
python from_pytorch.py train.npz pytorch.onnx
"""

import sys

import numpy as np
import torch
from torch import nn

torch.manual_seed(0)
with np.load(sys.argv[1]) as data:
    images, labels = torch.from_numpy(data["image"]), torch.from_numpy(data["labels"])


def block(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]


classes = int(labels.max()) + 1
model = nn.Sequential(*block(1, 32), *block(32, 64), *block(64, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                      nn.Linear(128, classes))  # fmt: skip
optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
for _ in range(2):
    for index in torch.randperm(len(images)).split(128):
        loss = nn.functional.cross_entropy(model(images[index]), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# eval() first, or BatchNorm is exported as it is while training; the batch stays open
model.eval()
torch.onnx.export(model, (images[:2],), sys.argv[2], input_names=["image"], output_names=["logits"],
                  dynamic_shapes=({0: torch.export.Dim("N")},), dynamo=True, external_data=False)  # fmt: skip
