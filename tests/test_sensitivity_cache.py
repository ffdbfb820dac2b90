"""`condensec analyze`: the map alone, as table, JSON and page, and from the cache the second time."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import residual_cnn, save, save_samples

import condensec
from condensec import api
from condensec.cli import main
from condensec.passes.sensitivity import Curve, LayerLoss, Sensitivity
from condensec.report import Report, read_report
from condensec.stages import sensitivity as stage


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(stage.FOLDER_VARIABLE, str(tmp_path / "cache"))
    model = residual_cnn()
    save(model, tmp_path)
    save_samples(model, tmp_path / "d.npz", 80)
    return tmp_path


def found(folder: Path, **options: object) -> Report:
    return api.analyze(folder / "model.onnx", data=str(folder / "d.npz"), **options)  # type: ignore[arg-type]


def maps(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "sensitivity").glob("*.json"))


def test_the_map_has_intervals_the_metric_and_layers(folder: Path) -> None:
    report = found(folder)
    assert report.status == "analyzed"
    assert report.cycles == ()
    assert set(report.sensitivity) == {g.id for g in report.groups}
    for name, details in report.sensitivity_detail.items():
        assert len(details) >= 4
        for share, detail in details.items():
            assert detail.loss == report.sensitivity[name][share]
            assert detail.ci95 is not None
            assert detail.ci95[0] <= detail.loss <= detail.ci95[1]
            assert detail.metric is not None
            assert 0 <= detail.metric <= 1
    assert report.layer_sensitivity
    assert min(x.loss for x in report.layer_sensitivity.values()) > 0
    assert report.sensitivity_samples > 4
    again = Report.from_json(json.loads(report.dumps()))
    assert again.sensitivity_detail == report.sensitivity_detail
    assert again.layer_sensitivity == report.layer_sensitivity
    assert condensec.analyze is api.analyze


def test_the_second_time_it_comes_from_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = found(folder)
    assert len(maps(folder)) == 1

    def never(*given: object, **options: object) -> Sensitivity:
        raise AssertionError("measured again")

    monkeypatch.setattr(stage, "measure", never)
    second = found(folder)
    assert second.sensitivity == first.sensitivity
    assert second.sensitivity_detail == first.sensitivity_detail
    assert second.layer_sensitivity == first.layer_sensitivity


def test_other_samples_models_or_criteria_are_measured(folder: Path) -> None:
    found(folder)
    found(folder, criterion="l2")
    assert len(maps(folder)) == 2
    with np.load(folder / "d.npz") as stored:
        arrays = dict(stored)
    arrays["input"] = arrays["input"] + np.float32(0.01)
    np.savez(folder / "d.npz", **arrays)
    found(folder)
    assert len(maps(folder)) == 3
    save(residual_cnn(seed=1), folder)
    found(folder)
    assert len(maps(folder)) == 4
    found(folder)
    assert len(maps(folder)) == 4


def test_a_damaged_map_is_measured_again(folder: Path) -> None:
    first = found(folder)
    for text in ("", "{}", "[]", '{"schema": 2, "curves": []}', '{"schema": 99}'):
        maps(folder)[0].write_text(text)
        assert found(folder).sensitivity == first.sensitivity
        assert json.loads(maps(folder)[0].read_text())["schema"] == 2


def test_a_cache_that_cannot_be_written_costs_only_time(folder: Path) -> None:
    (folder / "cache").write_text("a file where a folder should be")
    assert found(folder).sensitivity


def test_a_map_survives_its_file() -> None:
    nan = float("nan")
    curve = Curve((8, 4, 1), (0.0, 0.5, 2.0), (0.0, nan), (1.0, 0.5))
    whole = Sensitivity({"g0": curve}, 7, 1.5, {"l0": LayerLoss(0.25, nan, None)}, 0.5)
    doc = json.loads(json.dumps(stage.to_document(whole), allow_nan=False))
    again = stage.from_document(doc)
    assert again.curves["g0"].kept == curve.kept
    assert np.isnan(again.curves["g0"].deviation[1])
    assert np.isnan(again.layers["l0"].deviation)
    plain = replace(curve, deviation=(0.0,))
    assert replace(again.curves["g0"], deviation=(0.0,)) == plain
    details = stage.group_details(again)
    assert details == {"g0": {"0.5": stage.LossDetail(0.5, None, 0.5)}}, "the extrapolated end isn't measured"


def _written(path: Path, number: int) -> None:
    curve = Curve((8, 4), (0.0, float(number)), (0.0, 0.1))
    for _ in range(50):
        stage._write(path, Sensitivity({f"g{i}": curve for i in range(200)}, 1, 0.0))


def test_several_runs_may_write_the_same_map_at_once(tmp_path: Path) -> None:
    path = tmp_path / "sensitivity" / "map.json"
    context = multiprocessing.get_context("fork" if hasattr(__import__("os"), "fork") else "spawn")
    writers = [context.Process(target=_written, args=(path, n)) for n in range(2)]
    for writer in writers:
        writer.start()
    read = 0
    while any(w.is_alive() for w in writers):
        if path.exists():
            whole = stage._read(path)
            assert whole is not None
            assert len({c.loss[1] for c in whole.curves.values()}) == 1
            read += 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert read > 0
    assert [p.name for p in path.parent.iterdir()] == ["map.json"]


def test_the_command_prints_a_table_or_json_and_writes_a_page(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", "model.onnx", "--data", "d.npz", "-q", "-o", "map"]) == 0
    text = capsys.readouterr().out
    assert "keep 0.5" in text
    assert "+-" in text
    assert "without it" in text
    page = (folder / "map" / "report.html").read_text("utf-8")
    assert "Whole layers" in page
    assert "95%: " in page
    assert read_report(folder / "map" / "report.json").status == "analyzed"
    assert sorted(p.name for p in (folder / "map").iterdir()) == ["report.html", "report.json"]
    assert main(["analyze", "model.onnx", "--data", "d.npz", "-q", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert document["sensitivity"].keys() == document["sensitivity_detail"].keys()
    assert document["layer_sensitivity"]
    assert main(["analyze", "model.onnx", "--data", "d.npz", "--criterion", "activatio"]) == 2
    assert "did you mean 'activation'" in capsys.readouterr().err
