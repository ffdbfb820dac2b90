"""Tensors that share their contents with another."""

from __future__ import annotations

import onnx_ir as ir

from condensec.filetensor import FileTensor, reopened


def borrowed(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """The contents of another tensor under a name of its own: writing a model out renames its tensors."""
    if isinstance(tensor, ir.ExternalTensor):
        return reopened(tensor, name)
    if isinstance(tensor, FileTensor):
        return tensor.named(name)
    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(lambda: tensor, dtype=tensor.dtype, shape=shape, name=name)
