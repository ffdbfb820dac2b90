"""Which source files a ``module:callable`` is made of: its module, and what that imports from beside it."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

from condensec.errors import ConfigError


def source_files(spec: str) -> tuple[Path, ...]:
    """Python files behind ``module:callable``, sorted; nothing is run.

    Followed are imports that lead to files below the folder in which the module was found. What is
    installed elsewhere counts as part of the environment.

    Raises:
        ConfigError: there's no such module, or it has no source.
    """
    module = spec.partition(":")[0]
    top = _top_folder(module)
    found: set[Path] = set()
    pending = [module]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        path = _file(top, name)
        if path is None:
            continue
        found.add(path)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        pending += [".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 1)]
        pending += _imported(path, package)
    if not found:
        raise ConfigError(f"there is no source of the module '{module}'", hint="set PYTHONPATH")
    return tuple(sorted(found))


def _top_folder(module: str) -> Path:
    """The folder of ``sys.path`` that a module comes from; the current folder is looked in first."""
    import sys

    for entry in (os.getcwd(), *sys.path):
        folder = Path(entry or ".")
        if _file(folder, module) is not None:
            return folder
    raise ConfigError(
        f"there is no source of the module '{module}'", hint="check the name, or set PYTHONPATH"
    )


def _file(top: Path, name: str) -> Path | None:
    base = top.joinpath(*name.split("."))
    for path in (base / "__init__.py", base.with_name(f"{base.name}.py")):
        if path.is_file():
            return path
    return None


def _imported(path: Path, package: str) -> Iterator[str]:
    """Names of modules that a file may import; names imported from a package count as modules, too."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # running it will say so
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if package else []
            above = parts[: len(parts) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from filter(None, [source])
            yield from (f"{source}.{alias.name}" if source else alias.name for alias in node.names)
