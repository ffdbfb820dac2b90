"""Models that are int8 already, cut: is the cut right, and do onnxruntime's integers come out equal?

    python benchmarks/quantized_inputs.py MODEL.onnx ... [--shape x=1x3x48x192] [--keep 0.5] [--seeds 3]

For every MODEL (fp32), in every format of onnxruntime's own quantizer (QDQ, QOperator, dynamic with int8
weights for each channel, dynamic with uint8 weights), calibrated on made-up inputs: keep a random share of
every group, cut, and prove the cut. In the table:

- groups, MACs kept: of the int8 model;
- proof: of how many cuts; error: the worst, relative to the largest output; smooth: of how many the proof
  had to leave out the rounding of activations (see condensec.unrounded);
- exact: groups cut without approximation, and how far the outputs of onnxruntime's integer kernels are apart
  when only these are cut: 0 is equality of every integer. A QDQ graph gets such kernels from onnxruntime's
  optimizer. Dynamic graphs keep products of two activations (attention) in floats, which may round.

An opset below 13 is raised to 17 first: scales for each channel need it.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np

FORMATS = ("qdq", "qoperator", "dynamic", "dynamic u8")
OPSET = 17
ROUNDING = 1e-6  # of outputs about one: products of two activations stay float in dynamic graphs


def quantized(source: Path, folder: Path, form: str, shapes: dict[str, tuple[int, ...]]) -> Path:
    """The int8 version of a model, as onnxruntime.quantization writes it."""
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    plain, out = folder / "plain.onnx", folder / f"{source.stem}.{form.replace(' ', '.')}.onnx"
    model = onnx.load(str(source))
    if next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) < 13:
        model = onnx.version_converter.convert_version(model, OPSET)
    onnx.save(model, str(plain))
    quant_pre_process(str(plain), str(plain), skip_symbolic_shape=True)
    if form.startswith("dynamic"):
        wide = form.endswith("u8")
        kind = QuantType.QUInt8 if wide else QuantType.QInt8
        quantize_dynamic(str(plain), str(out), weight_type=kind, per_channel=not wide)
        return out

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = [made_up(source, shapes, seed) for seed in range(4)]

        def get_next(self) -> Any:
            return self._left.pop() if self._left else None

    quantize_static(
        str(plain), str(out), Reader(), per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        quant_format=QuantFormat.QDQ if form == "qdq" else QuantFormat.QOperator,
    )  # fmt: skip
    return out


def made_up(model: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Any]:
    """Inputs for one call."""
    from condensec import data, io

    signature = io.signature(io.load(model))
    count = next((s[0] for s in shapes.values() if s), 1)
    return dict(data.synthetic(signature, seed=seed, count=count, shapes=shapes).inputs)


def examine(path: Path, options: Any, given: dict[str, tuple[int, ...]]) -> list[dict[str, object]]:
    """One model in all formats."""
    from condensec import io
    from condensec.probe import runnable_shapes

    rows = []
    signature = io.signature(io.load(path))
    asked = {n: s for n, s in given.items() if n in {i.name for i in signature.inputs}}
    shapes = dict(runnable_shapes(path, signature, asked or None))
    for form in FORMATS:
        row: dict[str, object] = {"model": path.stem, "format": form}
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                made = quantized(path, Path(folder), form, shapes)
                row |= cut(made, shapes, options)
            except Exception as error:  # every kind of failure is a result here
                row["failure"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
        row["seconds"] = round(time.perf_counter() - started, 1)
        rows.append(row)
        print(common.table([row]).splitlines()[-1], file=sys.stderr, flush=True)
    return rows


def cut(made: Path, shapes: dict[str, tuple[int, ...]], options: Any) -> dict[str, object]:
    """Random cuts of one int8 model, proven and compared."""
    from condensec import io, verify
    from condensec.masked import masked
    from condensec.passes.groups import analyze
    from condensec.passes.prune import prune
    from condensec.runner import Session

    Session(made)  # what onnxruntime itself can't load is no case
    analysis = analyze(io.load(made), shapes)
    proofs, apart, kept = [], [], 1.0
    exact = [g for g in analysis.groups if g.exact]
    for seed in range(options.seeds):
        rng = np.random.default_rng(options.seed + seed)
        feeds = made_up(made, dict(analysis.world.inputs), seed)
        units = {
            g.id: np.sort(rng.permutation(g.size)[: g.share(options.keep)]).tolist() for g in analysis.groups
        }
        done = prune(analysis, units)
        kept = analysis.macs(analysis.kept(done.plan.kept()).sizes) / max(1, analysis.macs())
        proofs.append(verify.check(io.load(made), done.plan, done.model, feeds, threads=2))
        if exact:
            done = prune(analysis, {g.id: units[g.id] for g in exact})
            expected = Session(masked(io.load(made), done.plan)).run(feeds)
            found = Session(done.model).run(feeds)
            apart.append(max(float(np.abs(found[n] - a).max()) for n, a in expected.items()))
    passed = sum(p.passed for p in proofs)
    floats = any(n.op_type in ("MatMul", "Gemm", "Conv") for n in analysis.model.graph)
    dynamic = any(n.op_type == "DynamicQuantizeLinear" for n in analysis.model.graph)
    allowed = ROUNDING if floats and dynamic else 0.0
    return {
        "groups": len(analysis.groups),
        "MACs kept %": round(100 * kept, 1),
        "proof": f"{passed} of {len(proofs)}",
        "error": max(p.relative_error for p in proofs),
        "smooth": sum(p.unrounded for p in proofs),
        "exact": len(exact),
        "integers apart": max(apart) if apart else None,
        "good": passed == len(proofs) and all(a <= allowed for a in apart),
    }


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="quantized_inputs")
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--shape", nargs="+", default=[], metavar="INPUT=DIMS", help="for open dims")
    parser.add_argument("--keep", type=float, default=0.5, help="share of every group's units (default: 0.5)")
    parser.add_argument("--seeds", type=int, default=3, help="cuts of each model (default: 3)")
    options = parser.parse_args()
    from condensec.specs import parse_shape

    logging.getLogger().setLevel(logging.ERROR)
    shapes = dict(parse_shape(text) for text in options.shape)
    rows = [row for path in options.models for row in examine(path, options, shapes)]
    columns = [c for c in dict.fromkeys(k for r in rows for k in r) if c != "good"]
    print(common.table(rows, columns))
    good = sum(bool(row.get("good")) for row in rows)
    print(f"\n{good} of {len(rows)} int8 models: every proof passed, integers equal where the cut is exact")
    common.write_json(options.output / "quantized_inputs.json", {"keep": options.keep, "rows": rows}, started)
    return 0 if good == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
