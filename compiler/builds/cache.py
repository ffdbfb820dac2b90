"""Results by key, kept between runs and shared by processes.

    <cache>/results/<key>/entry.json      what the entry holds, with hashes; written last
    <cache>/results/<key>/files/...       the files of the output folder
    <cache>/results/locks/<key>           held while a key is computed or copied

An entry appears by one rename, so it is whole or not there. Whoever computes or copies an entry holds its
lock; the operating system lets go of the lock of a process that dies. The least recently used entries go
when the whole is larger than ``CONDENSEC_CACHE_SIZE`` (bytes, or with kB, MB, GB; 0 turns the cache off).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condensec.errors import CondensecError, ConfigError
from condensec.healing.lock import FileLock
from condensec.io import sha256

SCHEMA = 1
DEFAULT_BYTES = 2_000_000_000
FOLDER_VARIABLE, SIZE_VARIABLE = "CONDENSEC_CACHE_DIR", "CONDENSEC_CACHE_SIZE"
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_LEFTOVER = 3600.0  # seconds after which a draft of a process that died is removed
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One kept result.

    Attributes:
        key: its fingerprint.
        bytes: of its files together.
        used: when it was last used, seconds since the epoch.
        model: name of the model file.
    """

    key: str
    bytes: int
    used: float
    model: str


def default_folder() -> Path:
    """Where results are kept: ``$CONDENSEC_CACHE_DIR``, else the user's cache folder."""
    import platformdirs

    return Path(os.environ.get(FOLDER_VARIABLE) or platformdirs.user_cache_dir("condensec")) / "results"


def size_limit() -> int:
    """Bytes that may be kept; 0 = no cache.

    Raises:
        ConfigError: ``CONDENSEC_CACHE_SIZE`` can't be read.
    """
    text = os.environ.get(SIZE_VARIABLE, "").strip()
    if not text:
        return DEFAULT_BYTES
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text)
    if match is None or match[2].lower() not in _UNITS:
        raise ConfigError(
            f"{SIZE_VARIABLE}={text} can't be read", hint="write for instance 500MB, or 0 for none"
        )
    return int(float(match[1]) * _UNITS[match[2].lower()])


class ResultCache:
    """The cache.

    Args:
        folder: where entries are.
        limit: bytes that may be kept.
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = folder or default_folder()
        self.limit = size_limit() if limit is None else limit

    @contextlib.contextmanager
    def held(self, key: str, on_wait: Callable[[], None] | None = None) -> Iterator[bool]:
        """Hold a key's lock; gives False where the cache can't be used (then nothing is kept)."""
        try:
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / "locks" / key, on_wait)
            lock.__enter__()
        except OSError as error:
            _log.info("no cache: %s", error)
            yield False
            return
        try:
            yield True
        finally:
            lock.__exit__(None, None, None)

    def fetch(self, key: str, output: Path, changed: Mapping[str, str]) -> bool:
        """Write an entry's files to a folder; report.json comes last. The key has to be held.

        Args:
            key: the fingerprint.
            output: the folder.
            changed: file name -> text to write in place of what was kept.

        Returns:
            Whether there is such an entry. One that is damaged is removed.

        Raises:
            ConfigError: the folder can't be written.
        """
        entry = self.folder / key
        document = self._read(entry)
        if document is None:
            return False
        try:
            drafts = self._checked(entry, document["files"], output)
        except (OSError, ValueError, CondensecError) as error:
            _log.info("the entry %s is damaged: %s", key[:12], error)
            self._remove(entry)
            return False
        try:
            for name, draft in sorted(drafts.items(), key=lambda item: (item[0] == "report.json", item[0])):
                if name in changed:
                    draft.write_text(changed[name], encoding="utf-8")
                target = output / name
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(draft, target)
        except OSError as error:
            raise ConfigError(f"can't write to {output}: {error.strerror}") from error
        finally:
            if drafts:
                shutil.rmtree(_draft_folder(output), ignore_errors=True)
        with contextlib.suppress(OSError):
            os.utime(entry / "entry.json")
        return True

    def _checked(self, entry: Path, files: Mapping[str, Any], output: Path) -> dict[str, Path]:
        """Copies of an entry's files in a draft folder, each of them as its hash says."""
        drafts: dict[str, Path] = {}
        folder = _draft_folder(output)
        try:
            for number, (name, facts) in enumerate(files.items()):
                if Path(name).is_absolute() or ".." in Path(name).parts:
                    raise ValueError(f"{name} lies outside")
                folder.mkdir(parents=True, exist_ok=True)
                draft = folder / str(number)
                shutil.copyfile(entry / "files" / name, draft)
                if sha256(draft) != facts["sha256"]:
                    raise ValueError(f"{name} isn't what was written")
                drafts[name] = draft
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return drafts

    def store(self, key: str, model: str, files: Mapping[str, Path]) -> bool:
        """Keep a finished result. The key has to be held.

        Args:
            key: the fingerprint.
            model: name of the model file, for `entries`.
            files: name in the output folder -> file.

        Returns:
            Whether it was kept: not if it is larger than the limit, or can't be written.
        """
        size = sum(path.stat().st_size for path in files.values())
        if size > self.limit:
            _log.info("not kept: %d bytes are more than %s allows", size, SIZE_VARIABLE)
            return False
        try:
            draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=self.folder))
        except OSError as error:
            _log.info("not kept: %s", error)
            return False
        try:
            known = {}
            for name, path in sorted(files.items()):
                copy = draft / "files" / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
                known[name] = {"sha256": sha256(copy), "bytes": copy.stat().st_size}
            document = {"schema": SCHEMA, "key": key, "model": model, "bytes": size, "files": known}
            (draft / "entry.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
            self._remove(self.folder / key)
            os.rename(draft, self.folder / key)
        except (OSError, CondensecError) as error:
            _log.info("not kept: %s", error)
            return False
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._trim(keep=key)
        return True

    def entries(self) -> list[Entry]:
        """What is kept, the least recently used first."""
        found = []
        for folder in self.folder.glob("[0-9a-f]*"):
            document = self._read(folder)
            with contextlib.suppress(OSError):
                if document is not None:
                    used = (folder / "entry.json").stat().st_mtime
                    found.append(Entry(folder.name, int(document["bytes"]), used, str(document["model"])))
        return sorted(found, key=lambda entry: (entry.used, entry.key))

    def clear(self) -> int:
        """Remove every entry that nobody uses now; returns how many there were."""
        return sum(self._remove_unused(entry.key) for entry in self.entries())

    def _trim(self, keep: str) -> None:
        """Remove the least recently used entries until the rest fits, and drafts of processes that died."""
        entries = self.entries()
        total = sum(entry.bytes for entry in entries)
        for entry in entries:
            if total <= self.limit:
                break
            if entry.key != keep and self._remove_unused(entry.key):
                total -= entry.bytes
        for draft in self.folder.glob(".*-*"):
            with contextlib.suppress(OSError):
                if time.time() - draft.stat().st_mtime > _LEFTOVER:
                    shutil.rmtree(draft, ignore_errors=True)

    def _remove_unused(self, key: str) -> bool:
        lock = FileLock(self.folder / "locks" / key)
        try:
            if not lock.attempt():
                return False
        except OSError:
            return False
        try:
            self._remove(self.folder / key)
        finally:
            lock.__exit__(None, None, None)
        return True

    def _remove(self, entry: Path) -> None:
        """Take an entry out of sight at once, then delete it."""
        gone = entry.with_name(f".gone-{os.getpid()}-{time.monotonic_ns()}")
        with contextlib.suppress(OSError):
            os.rename(entry, gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _read(self, entry: Path) -> dict[str, Any] | None:
        """What an entry holds; None where there is none. A damaged one is removed when it is used."""
        try:
            document = json.loads((entry / "entry.json").read_text(encoding="utf-8"))
            known = document["schema"] == SCHEMA and document["key"] == entry.name
            return document if known and isinstance(document["files"], dict) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _draft_folder(output: Path) -> Path:
    return output / f".cached-{os.getpid()}"
