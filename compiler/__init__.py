"""condensec: ONNX in, a smaller and faster ONNX out, for a named target."""

__version__ = "0.1.0"
