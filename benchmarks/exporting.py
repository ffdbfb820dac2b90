"""PyTorch to ONNX, for the exports beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

OPSET = 17


def export(
    model: Any,
    example: tuple[Any, ...],
    path: Path,
    inputs: list[str],
    output: str,
    dynamic: dict[str, dict[int, str]],
    **options: Any,
) -> None:
    """TorchScript's exporter; says how far onnxruntime is from what PyTorch says.

    Args:
        model: a module in eval mode.
        example: its inputs.
        path: where to.
        inputs: their names.
        output: the name of the one output.
        dynamic: name -> axis -> name of the dim.
        options: further ones of torch.onnx.export.
    """
    import onnxruntime
    import torch

    with torch.no_grad():
        wanted = model(*example).numpy()
        torch.onnx.export(
            model, example, str(path), input_names=inputs, output_names=[output], dynamic_axes=dynamic,
            opset_version=OPSET, dynamo=False, **options,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = session.run(None, dict(zip(inputs, (e.numpy() for e in example), strict=True)))[0]
    print(f"{path.name}: largest difference to PyTorch {np.abs(got - wanted).max():.2g}")
