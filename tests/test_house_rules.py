"""House rules about the text of the code: size, docstrings, words that don't belong in it."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("compiler", "passes", "hardware")
SOURCES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))
MOST_LINES = 300  # of code in a file: blank lines, comments and docstrings don't count
MOST_IN_FUNCTION = 60

# put together here, so that this file doesn't hold them
UNWANTED = re.compile(
    "|".join(
        (
            "/" + "work/",
            "/" + "root/",
            r"\bTO" + r"DO\b",
            "FIX" + "ME",
            "[Ii]ssue" + r" #?\d",
            r"\bX" + r"XX\b",
        )
    )
)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code_lines(source: str, tree: ast.AST) -> set[int]:
    """Numbers of the lines that hold code."""
    lines = {
        n
        for n, text in enumerate(source.splitlines(), 1)
        if text.strip() and not text.strip().startswith("#")
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def too_long(source: str) -> list[str]:
    tree = ast.parse(source)
    lines = code_lines(source, tree)
    found = [f"{len(lines)} lines of code"] if len(lines) > MOST_LINES else []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            size = len(lines & set(range(node.lineno, (node.end_lineno or 0) + 1)))
            if size > MOST_IN_FUNCTION:
                found.append(f"{node.name} has {size} lines")
    return found


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Public functions, classes and methods without a docstring, and the module itself."""
    if tree.body and ast.get_docstring(tree) is None:
        yield "the module"
    pending: list[ast.AST] = [tree]
    while pending:
        for node in ast.iter_child_nodes(pending.pop()):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                overload = any("overload" in ast.unparse(d) for d in node.decorator_list)
                if ast.get_docstring(node) is None and not overload:
                    yield node.name
                if isinstance(node, ast.ClassDef):
                    pending.append(node)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_and_functions_stay_short(path: Path) -> None:
    assert too_long(path.read_text("utf-8")) == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_everything_public_is_documented(path: Path) -> None:
    assert list(undocumented(ast.parse(path.read_text("utf-8")))) == []


def test_no_unwanted_words_and_no_paths_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    files = [ROOT / line for line in listed.stdout.splitlines()] or SOURCES
    found = []
    for path in files:
        try:
            text = path.read_text("utf-8")
        except (UnicodeDecodeError, OSError):
            continue  # pictures, and files that were just renamed
        found += [f"{name(path)}: {hit.group()}" for hit in UNWANTED.finditer(text)]
    assert found == []


def test_the_checks_find_what_they_look_for() -> None:
    long = "def f():\n" + "    a = 1\n\n    # b\n" * 70
    assert too_long(long) == ["f has 71 lines"]
    assert too_long("a = 1\n" * 301) == ["301 lines of code"]
    assert too_long('def f():\n    """' + "a\n" * 500 + '    """\n') == []
    tree = ast.parse("def f(): pass\ndef _g(): pass\nclass C:\n    '''Doc.'''\n    def m(self): pass\n")
    assert sorted(undocumented(tree)) == ["f", "m", "the module"]
    assert UNWANTED.search("see /wor" + "k/main")
    assert not UNWANTED.search("homework/ and an issue")
