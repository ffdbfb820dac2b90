"""The helpers of the benchmarks, on numbers one can check by hand."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import as_constant_nodes, random_feeds, residual_cnn, run, save

from condensec.passes.groups import analyze

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


common = _load("common")
masked = _load("masked")


def test_wilson_against_the_textbook() -> None:
    # 15 of 50: [0.191, 0.437] (Wilson without continuity correction).
    low, high = common.wilson(np.arange(50) < 15)
    assert low == pytest.approx(0.191, abs=1e-3)
    assert high == pytest.approx(0.438, abs=1e-3)


def test_paired_change_is_exact_where_nothing_changes_and_narrower_than_unpaired() -> None:
    before = np.arange(1000) % 10 != 0
    assert common.paired_change(before, before) == (0.0, (0.0, 0.0))
    after = before.copy()
    after[:10] = False  # nine of them were right
    change, (low, high) = common.paired_change(before, after)
    assert change == pytest.approx(-0.9)
    assert low < -0.9 < high
    assert high - low < 1.3, "unpaired it would be 5.3 points wide"


def test_bootstrap_covers_the_mean() -> None:
    values = np.random.default_rng(1).normal(3, 1, 400)
    low, high = common.bootstrap(values, np.mean)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_table_lines_up_and_drops_empty_columns() -> None:
    rows = [{"model": "a", "MACs": 1234567, "x": None}, {"model": "longer", "ratio": 0.12345}]
    lines = common.table(rows).splitlines()
    assert lines[0].split() == ["model", "MACs", "ratio"]
    assert lines[2] == "a       1,234,567"
    assert lines[3].split() == ["longer", "0.1235"]


def test_json_has_its_origin_and_no_folders(tmp_path: Path) -> None:
    common.write_json(tmp_path / "sub" / "x.json", {"value": np.float32(0.5), "list": np.arange(2)}, 0.0)
    document = json.loads((tmp_path / "sub" / "x.json").read_text())
    assert document["value"] == 0.5
    assert document["list"] == [0, 1]
    assert {"command", "commit", "versions", "processor", "cores"} <= set(document["provenance"])
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["x.json"]


@pytest.mark.parametrize("disguise", [False, True])
def test_masked_original_equals_the_cut_by_hand(disguise: bool, tmp_path: Path) -> None:
    """Cutting the inner channels of a block by hand gives what masking them gives."""
    model = residual_cnn()
    kept = [0, 3, 4, 9]
    per_channel = [f"block1.a.bn.{p}" for p in ("scale", "bias", "mean", "var")]
    slices = {"block1.a.conv.weight": {"0": kept}, "block1.b.conv.weight": {"1": kept}}
    plan = {"slices": {**slices, **{name: {"0": kept} for name in per_channel}}}

    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    for weight in cut.graph.initializer:
        for axis, indices in plan["slices"].get(weight.name, {}).items():
            array = np.take(onnx.numpy_helper.to_array(weight), indices, int(axis))
            weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))

    path = save(as_constant_nodes(model) if disguise else model, tmp_path)
    feeds = random_feeds(model, 4)
    by_mask = run(masked.masked(path, plan), feeds)
    np.testing.assert_allclose(by_mask, run(cut, feeds), rtol=1e-4, atol=1e-5)
    assert np.abs(by_mask - run(model, feeds)).max() > 1e-2


def test_masking_names_an_unknown_weight(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="nowhere"):
        masked.masked(save(residual_cnn(), tmp_path), {"slices": {"nowhere": {"0": [0]}}})


def _scores(paths: list[list[int]], classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[np.array(paths)]


def test_greedy_decoding_drops_repeats_blanks_and_outer_spaces() -> None:
    ppocr = _load("ppocr_metric")
    alphabet = ppocr.characters("a\nb")
    assert alphabet == ["", "a", "b", " "]
    wanted = ppocr.encode(["ab a", "aab", "b"], alphabet, 5)
    assert wanted.tolist() == [[1, 2, 3, 1, 0], [1, 1, 2, 0, 0], [2, 0, 0, 0, 0]]
    # "ab a" behind a space; "a-ab" needs the blank between the two a; a wrong reading of "b"
    scores = _scores([[3, 1, 1, 2, 3, 1], [1, 0, 1, 1, 2, 2], [0, 1, 1, 0, 0, 0]], 4)
    assert ppocr.hits(scores, wanted).tolist() == [True, True, False]
    assert ppocr.exact_match({"y": scores}, type("S", (), {"labels": wanted})()).tolist() == [1, 1, 0]
    with pytest.raises(KeyError):
        ppocr.encode(["c"], alphabet, 5)


def test_spearman_shares_the_ranks_of_ties() -> None:
    stsb = _load("minilm_stsb")
    assert stsb.ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0, 2.5, 1]
    a = np.array([1.0, 2, 3, 4, 5])
    assert stsb.spearman(a, np.exp(a)) == pytest.approx(1)
    assert stsb.spearman(a, -a) == pytest.approx(-1)
    assert stsb.spearman(a, np.array([2.0, 1, 4, 3, 5])) == pytest.approx(0.8)


def test_the_least_a_cut_leaves_and_what_fixes_it() -> None:
    """Stem from 3 channels and head to 10 classes keep half at best, what lies between them a quarter."""
    from cutting import tiny

    zoo = _load("zoo_coverage")
    nodes = """a = Conv(x, w1) b = Relu(a) c = Conv(b, w2) d = Conv<group=8>(c, w3) e = GlobalAveragePool(d)
        f = Flatten(e) y = Gemm<transB=1>(f, w4)"""
    weights = {"w1": (8, 3, 1, 1), "w2": (8, 8, 1, 1), "w3": (8, 1, 1, 1), "w4": (10, 8)}
    analysis = analyze(ir.from_proto(tiny(nodes, x=["N", 3, 4, 4], weights=weights)))
    macs = {"Conv0": 16 * 24, "Conv2": 16 * 64, "Conv3": 16 * 8, "Gemm6": 80}
    left = zoo.least_kept(analysis, 0.5)
    assert left == {"Conv0": 16 * 12, "Conv2": 16 * 16, "Conv3": 16 * 4, "Gemm6": 40}
    assert analysis.node_macs({}) == macs
    why = zoo.one_axis(analysis)
    assert why == {
        "the model's input": pytest.approx(macs["Conv0"] / sum(macs.values())),
        "depthwise": pytest.approx(macs["Conv3"] / sum(macs.values())),
        "graph output 'y'": pytest.approx(macs["Gemm6"] / sum(macs.values())),
    }


def test_medians_of_seeds_are_by_run_and_of_numbers_only(tmp_path: Path) -> None:
    controls = _load("quality/controls")
    task = controls.Task(Path("m.onnx"), [], "macs<=0.5x", 1.0, lambda path: {}, tmp_path, 3)

    def compared(one: object) -> list[dict[str, object]]:
        seed = one.seed  # type: ignore[attr-defined]
        assert one.output == tmp_path / f"seed{seed}"  # type: ignore[attr-defined]
        return [{"run": "a", "top-1 %": 90.0 + seed, "change": "x"}, {"run": "b", "top-1 %": 10.0 * seed}]

    rows = controls.seeded(task, 3, compared)
    assert len(rows) == 8
    assert rows[-2] == {"run": "a", "seed": "median", "top-1 %": 94.0}
    assert rows[-1] == {"run": "b", "seed": "median", "top-1 %": 40.0}
    assert rows[0] == {"run": "a", "seed": 3, "top-1 %": 93.0, "change": "x"}
    alone = controls.seeded(task, 1, lambda one: [{"run": "a", "top-1 %": float(one.seed)}])
    assert alone == [{"run": "a", "top-1 %": 3.0}]
