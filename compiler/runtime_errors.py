"""onnxruntime's errors, in one line that names the node."""

from __future__ import annotations

import re
from typing import NoReturn

from condensec.errors import ModelError, PostconditionError

_NODE_PATTERNS = (
    re.compile(r"while running (?P<op>\w+) node\. Name:'(?P<node>[^']*)'"),
    re.compile(r"Node:? ?\((?P<node>[^()]*)\) Op \((?P<op>\w+)\)"),
    re.compile(r"In Node, \(\"(?P<node>[^\"]*)\", (?P<op>\w+)"),
    re.compile(r"Optype \((?P<op>\w+)\).* in node \((?P<node>[^()]*)\)"),
    re.compile(r"(?:for|find kernel for) (?P<op>\w+)\(\d+\).*?node:? ?'(?P<node>[^']*)'"),
    re.compile(r"[Nn]ode:? ?['\"(]+(?P<node>[^'\"()\s]+)['\")]"),
)
_STATUS = re.compile(r"Status Message: (.*)")
_PLACE = re.compile(r"\S*/onnxruntime\S*\.(?:cc|h|cpp):\d+ ")
# a C++ signature such as "void onnxruntime::Graph::Load(const X&, bool) "
_SIGNATURE = re.compile(r"(?:[\w:<>&*]+ )*onnxruntime::[\w:~]+(?:<[^()]*>)?\([^()]*\)(?: const)? ")
_LONGEST = 500  # characters of a message that are worth a line


def explain(error: BaseException) -> tuple[str, str | None]:
    """The error's text without its code, file and signature, and the node's name if it tells one.

    Returns:
        The message in one line, and the node's name (or, for a node onnxruntime made itself, the name of
        the value it computes), or None.
    """
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split()))
    match = next((m for m in (pattern.search(text) for pattern in _NODE_PATTERNS) if m), None)
    # "_nchwc" is what onnxruntime's layout pass appends to the output's name
    node = (match.group("node").removesuffix("_nchwc") or None) if match else None
    status = _STATUS.search(text)
    text = _SIGNATURE.sub("", _PLACE.sub("", status.group(1) if status else text)).strip()
    if status and match and node:
        text = f"{match.groupdict().get('op', 'node')} '{node}': {text}"
    return text[:_LONGEST], node


def raise_load_error(error: Exception, label: str) -> NoReturn:
    """Raise the `ModelError` for a session that couldn't be created."""
    text, node = explain(error)
    raise ModelError(f"onnxruntime can't load {label}: {text}", node=node) from error


def raise_run_error(error: Exception, label: str) -> NoReturn:
    """Raise the `PostconditionError` for a run that failed."""
    text, node = explain(error)
    raise PostconditionError(f"running {label} failed: {text}", node=node) from error
