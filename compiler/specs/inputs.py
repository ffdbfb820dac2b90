"""Shapes and values of inputs: ``x=1x3x48x192``, ``sr=16000``."""

from __future__ import annotations

import re
from typing import Any

from condensec.errors import ConfigError


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """``x=1x3x48x192``: an input's name and its whole shape, batch included.

    Raises:
        ConfigError: anything else.
    """
    name, _, dims = text.rpartition("=")
    if not name or not re.fullmatch(r"[1-9][0-9]*([x,][1-9][0-9]*)*", dims):
        raise ConfigError(f"--shape '{text}' can't be read", hint="write INPUT=1x3x224x224")
    return name, tuple(int(d) for d in re.split("[x,]", dims))


def parse_input(text: str) -> tuple[str, str]:
    """``sr=16000``, ``flag=true``, ``size=480,640``, ``state=zeros.npy``: an input's name and value as text.

    Raises:
        ConfigError: anything else.
    """
    name, _, value = text.partition("=")
    number = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"
    if not name or not re.fullmatch(rf"true|false|{number}(,{number})*|.+\.npy", value):
        raise ConfigError(
            f"--input '{text}' can't be read",
            hint="write INPUT=NUMBER, INPUT=NUMBER,NUMBER, INPUT=true or INPUT=FILE.npy",
        )
    return name, value


def input_value(name: str, text: str) -> Any:
    """The array that a value of `parse_input` stands for.

    Raises:
        DataError: a file can't be read.
    """
    import numpy as np

    if text.endswith(".npy"):
        from pathlib import Path

        from condensec.data.npz import read_npy
        from condensec.errors import DataError

        path = Path(text)
        if not path.is_file():
            raise DataError(f"no such file: {path}", node=name, hint=f"check the path after --input {name}=")
        return np.asarray(read_npy(path))
    if text in ("true", "false"):
        return np.asarray(text == "true")
    numbers = [float(part) if re.search(r"[.eE]", part) else int(part) for part in text.split(",")]
    return np.asarray(numbers if "," in text else numbers[0])
