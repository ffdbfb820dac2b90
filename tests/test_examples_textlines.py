"""The rendered lines: exact preprocessing, splits that share nothing, the same picture for the same seed."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("PIL")


def _load(name: str) -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


textlines = _load("textlines")


def _fonts_installed() -> bool:
    try:
        return all(textlines.faces(f) for fonts in textlines.FONTS.values() for f in fonts)
    except Exception:
        return False


needs_fonts = pytest.mark.skipif(not _fonts_installed(), reason="pip install -r examples/requirements.txt")


def test_splits_share_no_word() -> None:
    sets = [set(textlines.words(split)) for split in textlines.SPLITS]
    assert all(len(s) > 90 for s in sets)
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]


def test_every_token_of_a_line_belongs_to_its_split() -> None:
    rng = np.random.default_rng(0)
    for split in textlines.SPLITS:
        for _ in range(200):
            line = textlines.text(rng, split, 16)
            assert 3 <= len(line) <= 16
            assert {textlines.split_of(token) for token in line.split()} == {split}


def test_resize_is_bilinear_with_pixel_centres_at_a_half() -> None:
    # By hand: 4 columns to 2 sample at 0.5 and 2.5; 2 columns to 4 sample at -0.25, 0.25, 0.75, 1.25.
    row = np.array([[[0], [10], [20], [60]]], np.uint8)
    assert textlines.resize(row, 1, 2).ravel().tolist() == [5, 40]
    pair = np.array([[[0], [100]]], np.uint8)
    assert textlines.resize(pair, 1, 4).ravel().tolist() == [0, 25, 75, 100]
    np.testing.assert_array_equal(textlines.resize(row, 3, 4)[2], row[0])


def test_prepare_normalizes_swaps_the_channels_and_pads() -> None:
    picture = np.zeros((24, 12, 3), np.uint8)
    picture[..., 0] = 255  # red
    x = textlines.prepare(picture, 192)
    assert x.shape == (3, 48, 192)
    assert (x[2, :, :24] == 1).all(), "red is the last channel"
    assert (x[:2, :, :24] == -1).all()
    assert (x[:, :, 24:] == 0).all(), "padding is zero after the normalization"
    wide = textlines.prepare(np.full((10, 100, 3), 128, np.uint8), 192)
    assert (wide != 0).all(), "a line that is too long is squeezed, not cut"


@needs_fonts
def test_lines_depend_on_seed_split_and_index_alone() -> None:
    x, labels = textlines.orientation("train", 6)
    longer, more = textlines.orientation("train", 9)
    np.testing.assert_array_equal(longer[:6], x)
    np.testing.assert_array_equal(more[:6], labels)
    assert not np.array_equal(textlines.orientation("train", 6, seed=1)[0], x)
    assert not np.array_equal(textlines.orientation("test", 6)[0], x)


@needs_fonts
def test_label_one_is_the_line_turned_by_half_a_circle() -> None:
    x, labels = textlines.orientation("validation", 40)
    assert 5 < labels.sum() < 35
    for i in range(10):
        _, picture, turned = textlines._line("validation", 0, i, 16, textlines.PHOTO)
        upright = textlines.prepare(picture, 192)
        assert np.array_equal(x[i], upright) == (turned == 0)


@needs_fonts
def test_half_of_the_test_fonts_are_new() -> None:
    seen = set(textlines.FONTS["train"]) | set(textlines.FONTS["validation"])
    assert len(set(textlines.FONTS["test"]) - seen) == len(textlines.FONTS["test"]) // 2
