"""Options that several commands share. Values stay text: `condensec.config` parses them all."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from condensec.commands import offers

WHAT, HOW, OUT = "What", "How", "Output"


OFFERS = {  # what the shell offers as values
    "--target": offers.targets,
    "--criterion": offers.criteria,
    "--metric": offers.metrics,
    "--heal": offers.heal,
    "--quantize": offers.quantize,
    "--patterns": offers.patterns,
    "--augment": offers.augment,
    "--loss": offers.loss,
    "--budget": offers.budget,
    "--calibrate": offers.calibrate,
}


def _text(flag: str, metavar: str, text: str, panel: str, *more: str) -> Any:
    return typer.Option(
        *more, flag, metavar=metavar, help=text, rich_help_panel=panel, show_default=False,
        autocompletion=OFFERS.get(flag),
    )  # fmt: skip


def _switch(flag: str, text: str, panel: str = OUT, *more: str) -> Any:
    return typer.Option(*more, flag, help=text, rich_help_panel=panel, show_default=False)


Model = Annotated[str, typer.Argument(metavar="MODEL", help="The ONNX file.", show_default=False)]
OptionalModel = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="The ONNX file.", show_default=False)
]
Target = Annotated[
    list[str] | None,
    _text("--target", "NAME", "Where it will run; repeatable. Default: host. See 'condensec targets'.", WHAT),
]
Table = Annotated[
    list[str] | None,
    _text(
        "--table",
        "FILE",
        "A latency table made on a target's own device ('condensec profile' writes one); repeatable.",
        WHAT,
    ),
]
Budget = Annotated[
    list[str] | None,
    _text(
        "--budget",
        "EXPR",
        "'latency<=0.5x', 'latency<=5ms', 'macs<=0.5x', 'params<=0.4x', 'size<=4MB'; repeatable. Default:"
        " towards half the latency, as far as the guard allows.",
        WHAT,
    ),
]
Keep = Annotated[
    str | None, _text("--keep", "X", "Instead of a budget: keep this share of every group's units.", WHAT)
]
Pareto = Annotated[
    str | None,
    _text("--pareto", "N", "Write N models along the front of metric and latency, too: DIR/pareto/NN.", OUT),
]
MaxDrop = Annotated[
    str | None,
    _text(
        "--max-drop",
        "X",
        "Points of the metric that may be lost: the guard. Default: 1; 'inf' = no guard.",
        WHAT,
    ),
]
Data = Annotated[
    str | None,
    _text(
        "--data",
        "PATH",
        "Samples: .npz (arrays named like the inputs, plus 'labels' or outputs), a folder of .npz or .npy, or"
        " module:callable. Default: made-up inputs, fidelity to the original.",
        WHAT,
    ),
]
Val = Annotated[
    str | None, _text("--val", "PATH", "Held-out samples for the metric. Default: a part of --data.", WHAT)
]
MetricName = Annotated[
    str | None,
    _text(
        "--metric",
        "NAME",
        "top1, top5, agreement, cosine, mse, kl, or module:callable. Default: top1 with labels, otherwise"
        " agreement or cosine with the original.",
        WHAT,
    ),
]
Shape = Annotated[
    list[str] | None,
    _text("--shape", "INPUT=DIMS", "Shape of a made-up input: x=1x3x48x192; repeatable.", WHAT),
]
Input = Annotated[
    list[str] | None,
    _text(
        "--input",
        "INPUT=VALUE",
        "Value of an input that is the same in every sample: sr=16000, flag=true, size=480,640,"
        " state=FILE.npy; repeatable.",
        WHAT,
    ),
]
Step = Annotated[
    str | None, _text("--step", "X", "Share of the remaining units cut per cycle. Default: 0.1.", HOW)
]
Heal = Annotated[
    str | None,
    _text(
        "--heal",
        "SPEC",
        "off, closed-form, epochs=3, minutes=10, or auto (the default): closed form, then at most 2 minutes"
        " by gradient where there is data.",
        HOW,
    ),
]
Teacher = Annotated[
    str | None,
    _text(
        "--teacher",
        "PATH",
        "A model with the same inputs and outputs that training learns from. Default: the original.",
        HOW,
    ),
]
Recipe = Annotated[
    str | None,
    _text(
        "-O",
        "LEVEL",
        "A ready recipe: -O1 safe, -O2 balanced, -O3 the smallest; other options win.",
        WHAT,
    ),
]
Augment = Annotated[
    str | None,
    _text(
        "--augment",
        "STEPS",
        "Change the samples that healing trains on: flip, crop=4 (images [N,C,H,W]), module:callable, or"
        " several joined by commas.",
        HOW,
    ),
]
Loss = Annotated[
    str | None,
    _text(
        "--loss",
        "SPEC",
        "What healing compares: output=1,features=0.5 (block outputs), or kl, mse, cosine, ce, bce, task_mse."
        " Default: output=1,features=4; of heal: output=1.",
        HOW,
    ),
]
Patterns = Annotated[
    str | None,
    _text(
        "--patterns",
        "LIST",
        "What may be cut: channels, heads, neurons (the default), layers, or one kind: kv_heads, head_dims,"
        " hidden, experts, rnn_units; unstructured=0.9, 2:4 or 1x4=0.5 set weights to zero afterwards.",
        HOW,
    ),
]
Sparse = Annotated[
    bool,
    _switch("--sparse", "Store zeros as sparse tensors in graphs for onnxruntime: smaller, not faster.", HOW),
]
Quantize = Annotated[
    str | None,
    _text("--quantize", "SPEC", "none (the default), int8, fp16, auto (measured per target).", HOW),
]
Calibrate = Annotated[
    str | None,
    _text(
        "--calibrate",
        "METHOD",
        "Ranges of int8 activations: minmax, entropy, percentile, or auto (the default): the truest of them.",
        HOW,
    ),
]
Criterion = Annotated[
    str | None,
    _text(
        "--criterion",
        "NAME",
        "What makes a unit important: obs (the default: what its consumers lose, re-fitted without it),"
        " magnitude, fisher, ... or auto, the best by measurement.",
        HOW,
    ),
]
Align = Annotated[
    str | None, _text("--align", "N", "Override the target's alignment; 1 = any number of channels.", HOW)
]
Freeze = Annotated[
    list[str] | None,
    _text("--freeze", "REGEX", "Leave nodes and weights with such names alone; repeatable.", HOW),
]
Seed = Annotated[str | None, _text("--seed", "N", "Of everything random. Default: 0.", HOW)]
Jobs = Annotated[str | None, _text("--jobs", "N", "Threads. Default: the cores at hand.", HOW, "-j")]
ConfigFile = Annotated[
    str | None, _text("--config", "FILE", "Settings from a condensec.toml; flags win.", HOW)
]
OutputFolder = Annotated[
    str | None,
    _text("--output", "DIR", "Folder to write. Default: MODEL.condensed beside the model.", OUT, "-o"),
]
Resume = Annotated[bool, _switch("--resume", "Go on with an interrupted run.")]
DryRun = Annotated[bool, _switch("--dry-run", "Measure and plan; write nothing.")]
NoCache = Annotated[bool, _switch("--no-cache", "Compute anew, even if the same was computed before.")]
Depfile = Annotated[
    str | None,
    _text("--depfile", "FILE", "Write which files were read, as a rule for Make and Ninja.", OUT),
]
DepfileTarget = Annotated[
    str | None,
    _text("--depfile-target", "NAME", "The rule's target. Default: the file that is written last.", OUT),
]
Json = Annotated[bool, _switch("--json", "One JSON document on stdout.")]
Quiet = Annotated[bool, _switch("--quiet", "No progress.", OUT, "-q")]
Verbose = Annotated[
    int,
    typer.Option(
        "-v", "--verbose", count=True, help="More of what is done; -vv with tracebacks.",
        rich_help_panel=OUT, show_default=False,
    ),
]  # fmt: skip
