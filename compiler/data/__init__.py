"""Samples: what a model is calibrated, healed and measured with.

Every array's axis 0 is the sample axis. Files are read without ever unpickling anything; arrays that a
file holds uncompressed are memory-mapped, so a data set may be larger than the memory.
"""

from condensec.data.load import load
from condensec.data.split import split
from condensec.data.synthetic import synthetic
from condensec.data.types import Samples, Signature, Splits, TensorSpec

__all__ = ["Samples", "Signature", "Splits", "TensorSpec", "load", "split", "synthetic"]
