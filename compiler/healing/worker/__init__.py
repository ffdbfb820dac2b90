"""The healing worker: runs under the Python that has onnxruntime-training, in its own process.

Nothing here imports condensec: only the standard library, numpy and the training build of onnxruntime.
`condensec.healing.client` starts it as the package `heal_worker` and talks to it in JSON lines.
"""
