r"""Depfiles: a rule for Make and Ninja that says which files a result was made from.

    out/report.json: model.onnx model.data samples.npz

Written as compilers write them (``gcc -MD -MP``): blanks and ``#`` escaped with a backslash, ``$`` doubled;
every file also has an empty rule of its own, so that Make doesn't stop when one is deleted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from condensec.errors import ConfigError


def write_depfile(path: Path, target: str | Path, files: Iterable[Path]) -> None:
    """Write a depfile, whole or not at all.

    Args:
        path: the file.
        target: what was made, spelled as the build system spells it.
        files: what it was made from.

    Raises:
        ConfigError: it can't be written, or a name has a line break.
    """
    from condensec.report.model import write_text

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, rule(target, files))
    except OSError as error:
        raise ConfigError(f"can't write the depfile {path}: {error.strerror}") from error


def rule(target: str | Path, files: Iterable[Path]) -> str:
    """The text of a depfile.

    Raises:
        ConfigError: a name has a line break.
    """
    needed = [escaped(file) for file in dict.fromkeys(files)]
    return " \\\n  ".join([f"{escaped(target)}:", *needed]) + "\n" + "".join(f"\n{n}:\n" for n in needed)


def escaped(name: str | Path) -> str:
    """A file's name as Make reads it."""
    text = os.fspath(name)
    if "\n" in text or "\r" in text:
        raise ConfigError(f"the name {text!r} can't be in a depfile", hint="it has a line break")
    return text.replace("$", "$$").replace("#", "\\#").replace(" ", "\\ ").replace("\t", "\\\t")
