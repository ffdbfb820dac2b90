"""Reading the JSON files that condensec writes, with one line about one that is none; writing texts whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from condensec.errors import ConfigError

T = TypeVar("T")


def read(path: Path, what: str, hint: str, parse: Callable[[Any], T]) -> T:
    """What a JSON file holds.

    Args:
        path: the file.
        what: it should be, in a word ("plan").
        hint: what to give instead.
        parse: makes the value of the document; may raise ConfigError.

    Raises:
        ConfigError: the file is missing, isn't JSON, or holds something else.
    """
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"can't read the {what} {path}: {error.strerror or error}", hint=hint) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is no {what}: it isn't JSON", hint=hint) from error
    except ConfigError as error:
        raise ConfigError(f"{path} is no {what}: {error.message}", hint=error.hint or hint) from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all. Undecodable bytes of file names are written as escapes.

    Raises:
        ConfigError: there is no such folder, or nobody may write there.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
        draft.replace(path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        draft.unlink(missing_ok=True)
        raise ConfigError(f"can't write {path}: {error.strerror}", hint="name another file") from error
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
