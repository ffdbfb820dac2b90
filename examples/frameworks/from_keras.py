"""Keras (TensorFlow) to ONNX: trains a small convolutional network on pictures and converts it.

    pip install tensorflow-cpu tf2onnx
    python from_keras.py train.npz keras.onnx

Keras has channels last. The model takes [N, 1, 24, 24] here, so that the samples fit all examples.
"""

import sys

import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from keras import layers

keras.utils.set_random_seed(0)
with np.load(sys.argv[1]) as data:
    images, labels = data["image"], data["labels"]

image = keras.Input(images.shape[1:], name="image")
x = layers.Permute((2, 3, 1))(image)
for width in (32, 64, 128):
    x = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.8)(x))
x = layers.GlobalAveragePooling2D()(x)
model = keras.Model(image, layers.Dense(int(labels.max()) + 1, name="logits")(x))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(optimizer=keras.optimizers.AdamW(3e-3), loss=loss)
model.fit(images, labels, batch_size=128, epochs=3, verbose=0)

# through a function with an open batch: the converter for Keras models knows Keras 2 only
call = tf.function(lambda image: {"logits": model(image, training=False)})
signature = [tf.TensorSpec((None, *images.shape[1:]), tf.float32, name="image")]
tf2onnx.convert.from_function(call, input_signature=signature, opset=17, output_path=sys.argv[2])
