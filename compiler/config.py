"""Config: every setting of a run, from flags or condensec.toml, validated once, at the edge.

    config = configure(model="m.onnx", target=["host"], budget=["latency<=0.5x"], data="d.npz")

Precedence: flags, then condensec.toml, then the defaults, which are:

    target    host
    budget    none: towards half the latency, as far as the guard allows; exit code 3 is for budgets asked for
    max-drop  1 point
    step      0.1
    heal      auto: closed form, then at most 2 minutes by gradient; without data closed form only
    jobs      the cores this process may use
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from condensec import recipes
from condensec import setting_values as values
from condensec.errors import ConfigError
from condensec.settings import FIELDS, KEYS, near_key
from condensec.specs import DEFAULT_PATTERNS, UNIT_PATTERNS, Budget, input_value
from condensec.toml_file import read_toml, write_toml

DEFAULT_MAX_DROP = 1.0  # points
_NO_SCALE = ("mse", "kl")  # metrics whose points have no natural size


@dataclass(frozen=True)
class Config:
    """Every setting of a run.

    Attributes:
        model: the ONNX file.
        output: the folder written.
        targets: names, in the user's order.
        tables: latency tables that were made on the targets' own devices.
        budgets: all have to be met; empty if none was asked for.
        towards: what to come near to where no budget was asked for, as far as the guard allows.
        keep: share of every group's units that stays, in place of a budget.
        pareto: so many models along the way are written, too.
        align: overrides the targets' alignment; 1 = any count.
        max_drop: points of the metric that may be lost; infinite = no guard.
        data: path or ``module:callable`` (from Python also arrays, samples or a callable); None = data-free.
        val: held-out samples, like ``data``.
        metric: name, ``module:callable`` or a callable; None = chosen by the data.
        step: share of the remaining units cut per cycle, in (0, 1].
        heal: how the cut model learns again: ``off``, ``closed-form``, ``auto``, ``epochs=3``, ``minutes=10``
            (`condensec.specs.parse_heal` takes it apart).
        teacher: a model file that training learns from; None = the original.
        augment: how training samples are changed: ``flip``, ``crop=4``, ``module:callable``, several joined
            by commas, or a function; None = not at all.
        loss: what healing compares, such as ``output=1,features=0.5``; None = the outputs and the
            outputs of blocks.
        patterns: what may be cut, and the zeros that are set after it (`condensec.sparsity`).
        sparse: store weights with many zeros as sparse tensors, for targets that read them.
        quantize: ``none``, ``int8``, ``fp16`` or ``auto``.
        calibrate: how ranges of int8 activations are found: ``minmax``, ``entropy``, ``percentile`` or
            ``auto`` (the truest by measurement).
        criterion: importance criterion.
        freeze: regular expression; nodes and weights whose names match are left alone.
        input_shapes: shapes for made-up inputs, by input name, batch included.
        inputs: values of inputs that are the same in every sample, as text (`condensec.specs.parse_input`).
        seed, jobs: of all random choices; threads.
        resume, dry_run: go on from the last checkpoint; plan only.
        command: the command line, for the report.
    """

    model: Path
    output: Path
    targets: tuple[str, ...] = ("host",)
    tables: tuple[str, ...] = ()
    budgets: tuple[Budget, ...] = ()
    towards: Budget | None = None
    keep: float | None = None
    pareto: int | None = None
    align: int | None = None
    max_drop: float = DEFAULT_MAX_DROP
    data: Any = None
    val: Any = None
    metric: Any = None
    step: float = 0.1
    heal: str = "auto"
    teacher: Path | None = None
    augment: Any = None
    loss: str | None = None
    patterns: tuple[str, ...] = DEFAULT_PATTERNS
    sparse: bool = False
    quantize: str = "none"
    calibrate: str = "auto"
    criterion: str = "obs"
    freeze: str | None = None
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    jobs: int = 1
    resume: bool = False
    dry_run: bool = False
    command: str = ""

    @property
    def input_values(self) -> dict[str, Any]:
        """`inputs` as arrays.

        Raises:
            DataError: a file can't be read.
        """
        return {name: input_value(name, text) for name, text in self.inputs.items()}

    def to_toml(self) -> str:
        """condensec.toml with everything resolved: ``--config`` of it repeats the run.

        What only Python can hold (arrays, callables) is left out; a comment says so.
        """
        values: dict[str, Any] = {
            "model": os.path.abspath(self.model),
            "output": os.path.abspath(self.output),
            "target": list(self.targets),
            "table": [os.path.abspath(table) for table in self.tables],
            "budget": [str(b) for b in self.budgets],
            "towards": None if self.towards is None else str(self.towards),
            "keep": self.keep,
            "pareto": self.pareto,
            "align": self.align,
            "max-drop": self.max_drop,
            "data": _absolute(self.data),
            "val": _absolute(self.val),
            "metric": self.metric,
            "step": self.step,
            "heal": self.heal,
            "teacher": _absolute(self.teacher),
            "augment": self.augment,
            "loss": self.loss,
            "patterns": ",".join(self.patterns),
            "sparse": self.sparse or None,
            "quantize": self.quantize,
            "calibrate": self.calibrate,
            "criterion": self.criterion,
            "freeze": self.freeze,
            "seed": self.seed,
            "jobs": self.jobs,
            "input": {name: _absolute(text) for name, text in self.inputs.items()},
            "shape": {name: list(dims) for name, dims in self.input_shapes.items()},
        }
        lost = [
            k for k in ("data", "val", "metric", "augment") if not isinstance(values[k], str | Path | None)
        ]
        for key in lost:
            values[key] = None
        kept = {k: v for k, v in values.items() if v is not None and v not in ({}, [])}
        comment = f"# given from Python, not repeatable from here: {', '.join(lost)}\n" if lost else ""
        return comment + write_toml(kept)


def configure(*, config: str | Path | None = None, command: str = "", **options: Any) -> Config:
    """Make the `Config` of a run from options named like the flags (``max_drop`` for ``--max-drop``).

    Options that are None weren't given. A condensec.toml (``config``) fills the gaps.

    Raises:
        ConfigError: a value that can't be, or an unknown option; says what is allowed.
    """
    given = {name: value for name, value in options.items() if value is not None}
    unknown = [name for name in given if name not in KEYS]
    if unknown:
        raise ConfigError(f"unknown option '{unknown[0]}'", hint=near_key(unknown[0]))
    if config is not None:
        given = {**_from_file(Path(config), given), **given}
    if "recipe" in given:
        given = recipes.beside(recipes.ready(str(given.pop("recipe"))), given)
    if "model" not in given:
        raise ConfigError("no model given", hint="condensec MODEL.onnx --target TARGET")
    made = {name: parse(given[name]) for name, parse in KEYS.items() if name in given}
    renamed = {FIELDS.get(name, name): value for name, value in made.items()}
    renamed.setdefault("output", Path(f"{os.path.splitext(made['model'])[0]}.condensed"))
    renamed.setdefault("jobs", usable_cores())
    result = Config(**renamed, command=command)
    _check_together(result, "max_drop" in given)
    return result


def _check_together(config: Config, max_drop_given: bool) -> None:
    if config.keep is not None and config.budgets:
        raise ConfigError("--keep and --budget exclude each other", hint="use one of them")
    if config.pareto is not None and (config.keep is not None or config.step >= 1):
        raise ConfigError(
            f"--pareto {config.pareto} needs cycles, and there is only one",
            hint="leave out --keep and --step 1",
        )
    if (config.keep is not None or config.budgets or config.pareto) and not set(config.patterns) & set(
        UNIT_PATTERNS
    ):
        raise ConfigError(
            f"--patterns {','.join(config.patterns)} takes no units out, so there is nothing to budget",
            hint="add channels,heads,neurons to --patterns, or leave out --budget, --keep and --pareto",
        )
    if config.teacher is not None and config.data is None:
        raise ConfigError("--teacher needs --data", hint="made-up inputs aren't trained on")
    if config.val is not None and config.data is None:
        raise ConfigError("--val needs --data", hint="give the samples to calibrate with as --data")
    if config.metric in _NO_SCALE and not max_drop_given:
        raise ConfigError(
            f"--metric {config.metric} needs --max-drop", hint=f"in units of {config.metric}; inf = no guard"
        )
    if os.path.realpath(config.output / "model.onnx") == os.path.realpath(config.model):
        raise ConfigError(
            f"writing to {config.output} would overwrite the model {config.model}",
            hint="choose another --output",
        )


def check_output(folder: Path) -> None:
    """The output folder can be written. Tries it and leaves no trace.

    Raises:
        ConfigError: it can't; says why.
    """
    missing: list[Path] = []
    place = Path(os.path.abspath(folder))
    while not os.path.lexists(place):
        missing.append(place)
        place = place.parent
    made: list[Path] = []
    try:
        for path in reversed(missing):
            path.mkdir()
            made.append(path)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"can't write to the output folder {folder}: {error.strerror or error}",
            hint="choose another with --output",
        ) from error
    finally:
        for path in reversed(made):
            path.rmdir()


def usable_cores() -> int:
    """CPU cores this process may use."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


# -- condensec.toml ---------------------------------------------------------------------------------


def _from_file(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a condensec.toml. Relative paths count from its folder; what flags give isn't looked at."""
    options: dict[str, Any] = {}
    document = read_toml(path)
    if "step" in document and isinstance(document["step"], list):  # a recipe; else the size of the steps
        document = recipes.beside(recipes.options(document.pop("step")), document)
    for key, value in document.items():
        name = key.replace("-", "_")
        if name not in KEYS or name in ("resume", "dry_run"):
            raise ConfigError(f"{path}: unknown key '{key}'", hint=near_key(key))
        excluded = {"budget": "keep", "keep": "budget"}.get(name)  # a flag of the one replaces the other
        if name not in given and excluded not in given:
            options[name] = _located(name, value, path.parent)
    return options


def _absolute(spec: Any) -> Any:
    """A file or folder by its whole path; anything else as it is."""
    if isinstance(spec, str | Path):
        return os.path.abspath(spec) if os.path.exists(spec) else str(spec)
    return spec


def _located(name: str, value: Any, folder: Path) -> Any:
    if name in ("model", "output", "teacher") and isinstance(value, str):
        return folder / value
    if name == "table":
        return [str(folder / path) for path in values.texts("table", value)]
    if name in ("data", "val") and isinstance(value, str) and (folder / value).exists():
        return str(folder / value)
    return value


assert {FIELDS.get(k, k) for k in KEYS if k != "recipe"} < {f.name for f in fields(Config)}
