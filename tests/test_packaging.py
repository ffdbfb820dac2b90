"""The house rules that a tool can check: what is packed, who may import whom, who may run a graph."""

import ast
import fnmatch
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
ROOMS = {"compiler": "condensec", "passes": "condensec.passes", "hardware": "condensec.hardware"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
UPSTAIRS = (
    "condensec.pipeline",
    "condensec.stages",
    "condensec.api",
    "condensec.cli",
    "condensec.commands",
    "condensec.builds",
    "condensec.__main__",
)


def sources() -> Iterator[tuple[str, Path]]:
    """(module name, file) of everything in the three rooms."""
    for folder, package in ROOMS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join((package, *parts)).removesuffix(".__init__"), path


def imports(tree: ast.AST, module: str) -> set[str]:
    """Every module that is imported, inside functions too; a name imported from a package counts as one.

    Relative imports are resolved for plain modules (the worker's); packages here use absolute ones.
    """
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            found |= {source} | {f"{source}.{alias.name}" for alias in node.names}
    return found


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def forbidden(module: str) -> tuple[str, ...]:
    """What a module may not import."""
    if within(module, ("condensec.passes",)):
        return ("condensec.hardware", *UPSTAIRS)
    if within(module, ("condensec.hardware",)):
        return ("condensec.passes", *UPSTAIRS)
    if module == "condensec" or within(module, UPSTAIRS):
        return ()
    return ("condensec.passes", "condensec.hardware", *UPSTAIRS)


def test_imports_go_one_way():
    wrong = [
        f"{module} imports {name}"
        for module, path in sources()
        for name in sorted(imports(ast.parse(path.read_text("utf-8")), module))
        if within(name, forbidden(module))
    ]
    assert wrong == []


def test_the_import_check_sees_every_form():
    code = "import condensec.passes.prune\ndef f():\n  from condensec import hardware\n"
    code += "from condensec.hardware import get\nfrom . import a\nfrom ..b import c\n"
    found = imports(ast.parse(code), "p.q.x")
    assert {"p.q.a", "p.b.c"} <= found
    assert {n for n in found if within(n, ("condensec.passes",))} == {"condensec.passes.prune"}
    assert {"condensec.hardware", "condensec.hardware.get"} <= found
    assert not within("condensec.passes_too", ("condensec.passes",))
    assert forbidden("condensec.passes.rules.conv")[0] == "condensec.hardware"
    assert forbidden("condensec.stages.cycles") == ()
    assert "condensec.passes" in forbidden("condensec.verify")


def test_only_the_runner_and_the_worker_open_sessions():
    users = {
        module
        for module, path in sources()
        if any(
            isinstance(node, ast.Attribute) and node.attr == "InferenceSession"
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
        )
    }
    assert "condensec.runner" in users
    alone = {"condensec.hardware.device_script"}  # runs on devices where condensec isn't installed
    assert {m for m in users - alone if not within(m, ("condensec.healing.worker",))} == {"condensec.runner"}


def test_every_folder_with_code_is_a_listed_package():
    there = {
        ".".join((package, *path.parent.relative_to(ROOT / folder).parts))
        for folder, package in ROOMS.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(there)


def test_every_other_file_is_package_data():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    for folder, package in ROOMS.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_dir() or path.suffix in (".py", ".pyc"):
                continue
            owner = ".".join((package, *path.parent.relative_to(ROOT / folder).parts))
            packed = any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns.get(owner, []))
            assert packed, f"{path.relative_to(ROOT)} isn't in the package data of {owner}"


def test_the_version_is_said_once():
    import condensec

    assert condensec.__version__ == PROJECT["project"]["version"]
    assert f"## {condensec.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
