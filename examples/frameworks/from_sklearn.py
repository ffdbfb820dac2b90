"""scikit-learn to ONNX: trains a multilayer perceptron on flat pictures and converts it.

    pip install scikit-learn skl2onnx
    python from_sklearn.py train.npz sklearn.onnx

The classifier takes [N, 576]; `zipmap=False` leaves out the dictionaries that ONNX has no tensors for, and
the output that holds the class itself is dropped: condensec compares probabilities.
"""

import sys

import numpy as np
from skl2onnx import to_onnx
from sklearn.neural_network import MLPClassifier

with np.load(sys.argv[1]) as data:
    images, labels = data["image"].reshape(len(data["image"]), -1), data["labels"]

model = MLPClassifier((256, 128), max_iter=6, random_state=0).fit(images, labels)
exported = to_onnx(
    model, images[:1], options={"zipmap": False, "output_class_labels": False}, target_opset=17
)
kept = [output for output in exported.graph.output if output.name == "probabilities"]
del exported.graph.output[:]
exported.graph.output.extend(kept)
with open(sys.argv[2], "wb") as file:
    file.write(exported.SerializeToString())
