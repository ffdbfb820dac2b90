"""The line, answered from the cache where the same was computed before."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from condensec.builds.cache import ResultCache
from condensec.builds.fingerprint import NotCacheable, fingerprint
from condensec.builds.inputs import config_files, signature
from condensec.errors import CondensecError

if TYPE_CHECKING:
    from condensec.config import Config
    from condensec.report.model import Report
    from condensec.stages.steps import Observer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What came of a run.

    Attributes:
        report: what is in report.json.
        cached: it was computed before, and its files were copied.
    """

    report: Report
    cached: bool = False


def compress(
    config: Config,
    observer: Observer | None = None,
    *,
    cache: bool = True,
    on_wait: Callable[[], None] | None = None,
) -> Run:
    """Run the whole line, or copy the files of a run with the same key.

    Only finished runs are kept. While one process computes a key, others that want the same wait for it.

    Args:
        config: validated settings.
        observer: told of every step; a cached result has none.
        cache: look for, and keep, the result.
        on_wait: called once when another process computes the same.

    Raises:
        CondensecError: as `condensec.pipeline.compress`.
    """
    store = ResultCache() if cache and not config.dry_run else None
    key = _key(config) if store is not None and store.limit > 0 else None
    if store is None or key is None:
        return Run(_line(config, observer))
    with store.held(key, on_wait) as usable:
        found = _kept(store, key, config) if usable else None
        if found is not None:
            return Run(found, cached=True)
        used = signature(config_files(config))
        output = Path(config.output)
        before = _files(output)
        report = _line(config, observer)
        after = _files(output)
        written = {name: output / name for name, facts in after.items() if before.get(name) != facts}
        if usable and _unchanged(used):
            store.store(key, Path(config.model).name, written)
    return Run(report)


def _line(config: Config, observer: Observer | None) -> Report:
    from condensec.pipeline import compress as line  # late: a kept result needs none of it

    return line(config, observer)


def _key(config: Config) -> str | None:
    """The run's key; None where it has none, which the log explains."""
    try:
        return fingerprint(config)
    except NotCacheable as reason:
        _log.info("not cached: %s", reason)
    except (CondensecError, OSError) as error:
        _log.info("not cached: %s", error)  # the line says it better
    return None


def _kept(store: ResultCache, key: str, config: Config) -> Report | None:
    """The report of a kept result, its files written; None where there is none."""
    from condensec.config import check_output
    from condensec.report.model import read_report

    output = Path(config.output)
    check_output(output)
    if not store.fetch(key, output, {"condensec.toml": config.to_toml()}):
        return None
    shutil.rmtree(output / "state", ignore_errors=True)  # of a run that was interrupted: it is done now
    return read_report(output / "report.json")


def _unchanged(used: dict[str, tuple[int, int]]) -> bool:
    """Whether the inputs are what they were before the run."""
    try:
        return signature(map(Path, used)) == used
    except CondensecError:
        return False


def _files(output: Path) -> dict[str, tuple[int, int, int]]:
    """Files of an output folder, with what changes when one is written anew."""
    found = {}
    for path in _walk(output):
        status = path.stat()
        found[path.relative_to(output).as_posix()] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def _walk(output: Path) -> Iterable[Path]:
    for path in sorted(output.rglob("*")):
        first = path.relative_to(output).parts[0]
        if path.is_file() and first != "state" and not first.startswith("."):
            yield path
