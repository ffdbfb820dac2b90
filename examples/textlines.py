"""Labelled pictures of text lines, rendered: data for the demo and the text-recognition benchmark.

A line is a few words, prices, dates or codes in one font, drawn with its own size, ink, background,
tilt, blur and noise. Two jobs use the same lines:

- **orientation**: is the line upright (label 0) or upside down (label 1)? One crop is [3, 48, 192].
- **recognition**: what does it say? One crop is [3, 48, 320].

The crops are prepared as the package `rapidocr-onnxruntime` 1.4.4 prepares them for its models: resized
to a height of 48 keeping the ratio (squeezed if that is too wide), blue-green-red, `(x / 255 - 0.5) / 0.5`,
padded with zeros on the right.

The splits share nothing that a model could learn by heart: every word, number and code belongs to exactly
one of train, validation and test, and half of the test lines are set in families that occur in no other
split. Line `i` of a split depends on `(seed, split, i)` alone, so a longer set begins with the shorter one.

Fonts come from packages of the package index (see requirements.txt: SIL OFL 1.1 or Apache-2.0).

    python textlines.py train=2000 validation=1000 test=2000 --output data/      # writes data/train.npz ...
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

HEIGHT = 48
ORIENTATION_WIDTH = 192
RECOGNITION_WIDTH = 320

SPLITS = ("train", "validation", "test")
_SHARED_FONTS = ("font-source-sans-pro", "font-source-serif-pro", "font-caladea")
FONTS = {
    "train": _SHARED_FONTS,
    "validation": (*_SHARED_FONTS, "font-hanken-grotesk"),
    "test": (*_SHARED_FONTS, "font-lato", "font-manrope", "font-fredoka-one"),
}
"""Font packages of each split; a line's family is drawn first, then one of its faces."""

Pixels = NDArray[np.uint8]
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Style:
    """How hard the lines are to read. Every figure is the worst case; a line draws its own below it.

    Attributes:
        smallest: font size in pixels of the smallest line; the largest is 56.
        tilt: degrees to either side.
        blur: radius in pixels, at the size the line is drawn in.
        noise: standard deviation, of 255.
        contrast: least distance between ink and paper, of 255, in luminance.
        clutter: share of the lines that have blotches, rules or a neighbouring line's edge behind them.
    """

    smallest: int
    tilt: float
    blur: float
    noise: float
    contrast: int
    clutter: float


PHOTO = Style(smallest=18, tilt=4.0, blur=1.6, noise=15.0, contrast=70, clutter=0.5)
"""Lines out of snapshots: the trained orientation classifier errs on about two in a hundred."""
CLEAN = Style(smallest=26, tilt=1.0, blur=0.6, noise=6.0, contrast=110, clutter=0.1)
"""Lines out of scans: a trained recogniser reads about 95 of a hundred without a mistake."""


# ------------------------------------------------------------------------------------------------ texts


def split_of(token: str) -> str:
    """The one split that may use this token: 60% train, 15% validation, 25% test, by its letters."""
    bucket = zlib.crc32(token.lower().encode()) % 20
    return "train" if bucket < 12 else "validation" if bucket < 15 else "test"


@functools.cache
def words(split: str) -> tuple[str, ...]:
    """The words of words.txt that belong to the split."""
    listed = Path(__file__).with_name("words.txt").read_text("utf-8").split()
    return tuple(w for w in listed if split_of(w) == split)


def _number(rng: np.random.Generator) -> str:
    kind = rng.integers(6)
    if kind == 0:
        return f"${rng.integers(1, 999)}.{rng.integers(100):02d}"
    if kind == 1:
        return f"{rng.integers(1, 29):02d}/{rng.integers(1, 13):02d}/{rng.integers(1990, 2030)}"
    if kind == 2:
        letters = "".join(chr(65 + i) for i in rng.integers(0, 26, 2))
        return f"{letters}-{rng.integers(1000, 9999)}"
    if kind == 3:
        return f"{rng.integers(2, 99)}%"
    if kind == 4:
        return f"{rng.integers(1, 24)}:{rng.integers(10, 60)}"
    return str(rng.integers(100, 99999))


def _token(rng: np.random.Generator, split: str) -> str:
    if rng.random() < 0.2:
        while split_of(number := _number(rng)) != split:
            pass
        return number
    word = words(split)[rng.integers(len(words(split)))]
    return (word, word.capitalize(), word.upper())[rng.integers(3)]


def text(rng: np.random.Generator, split: str, longest: int) -> str:
    """One to three tokens of the split, 3 to `longest` characters, with at least two letters.

    A line of digits alone (`808`, `69`) can look the same both ways up, so there are none.
    """
    while True:
        line = " ".join(_token(rng, split) for _ in range(rng.integers(1, 4)))
        if 3 <= len(line) <= longest and sum(c.isalpha() for c in line) >= 2:
            return line


# ---------------------------------------------------------------------------------------------- drawing


@functools.cache
def faces(package: str) -> tuple[Path, ...]:
    """The .ttf/.otf files of an installed font package, in a stable order, hairline weights left out."""
    files = importlib.metadata.files(package) or []
    found: dict[str, Path] = {}
    for file in sorted(map(str, files)):
        path = Path(file)
        thin = any(word in path.stem for word in ("Thin", "ExtraLight", "Variable"))
        if path.suffix.lower() in (".ttf", ".otf") and not thin:
            found[path.stem] = Path(str(importlib.metadata.distribution(package).locate_file(file)))
    if not found:
        raise SystemExit(f"no font file in package {package}; install it: pip install -r requirements.txt")
    return tuple(found.values())


def _colours(rng: np.random.Generator, contrast: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ink and paper, at least `contrast` apart in luminance."""
    luma = np.array([0.299, 0.587, 0.114])
    while True:
        ink, paper = rng.uniform(0, 255, (2, 3))
        if abs(float((ink - paper) @ luma)) >= contrast:
            return ink, paper


def _mask(line: str, font: ImageFont.FreeTypeFont, tilt: float, rng: np.random.Generator) -> Image.Image:
    """The line as coverage 0..255, with margins of up to a quarter of its size, tilted."""
    left, top, right, bottom = font.getbbox(line)
    margins = rng.uniform(0.05, 0.25, 4) * font.size
    size = (int(right - left + margins[0] + margins[1]), int(bottom - top + margins[2] + margins[3]))
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).text((margins[0] - left, margins[2] - top), line, 255, font)
    return mask.rotate(tilt, Image.Resampling.BILINEAR, expand=True)


def _paper(
    shape: tuple[int, int], colour: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """A gradient from one side to the other, [height, width, 3]."""
    height, width = shape
    direction = rng.uniform(-1, 1, 2)
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    slope = rng.uniform(0, 25) * (direction[0] * y + direction[1] * x)
    tinted: NDArray[np.float64] = colour + slope[..., None] * rng.uniform(0.5, 1, 3)
    return tinted


def _clutter(paper: NDArray[np.float64], strength: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Blotches, and sometimes a ruled line or a bar along the upper or lower edge."""
    height, width = paper.shape[:2]
    blotches = rng.integers(0, 256, (max(2, height // 12), max(2, width // 12)), np.uint8)
    smooth = Image.fromarray(blotches).resize((width, height), Image.Resampling.BICUBIC)
    paper = paper + (np.asarray(smooth, np.float64)[..., None] - 128) / 128 * strength
    if rng.random() < 0.5:
        row, thick = rng.integers(height), max(1, height // 30)
        paper[row : row + thick] += rng.choice([-1, 1]) * strength * 1.5
    if rng.random() < 0.5:
        edge = max(1, height // 10)
        bar = slice(0, edge) if rng.random() < 0.5 else slice(height - edge, height)
        paper[bar, np.cumsum(rng.uniform(0, 1, size=width)) % 6 < 3] += rng.choice([-1, 1]) * strength * 2
    return paper


def draw(line: str, face: Path, style: Style, rng: np.random.Generator) -> Pixels:
    """Draws one line.

    Args:
        line: what it says.
        face: font file.
        style: bounds of its size, tilt, blur, noise, contrast and clutter.
        rng: everything random comes from here.

    Returns:
        The picture, [height, width, 3], red-green-blue.
    """
    size = int(rng.integers(style.smallest, 57))
    font = ImageFont.truetype(str(face), size, layout_engine=ImageFont.Layout.BASIC)
    mask = _mask(line, font, float(rng.uniform(-style.tilt, style.tilt)), rng)
    ink, paper_colour = _colours(rng, style.contrast)
    paper = _paper((mask.height, mask.width), paper_colour, rng)
    if rng.random() < style.clutter:
        paper = _clutter(paper, float(rng.uniform(0.1, 0.4)) * style.contrast, rng)
    coverage = np.asarray(mask, np.float64)[..., None] / 255
    picture = Image.fromarray((paper * (1 - coverage) + ink * coverage).clip(0, 255).astype(np.uint8))
    # Half of the lines stay sharp; a small line is blurred less, as it has less to lose.
    radius = max(0.0, float(rng.uniform(-style.blur, style.blur))) * min(1.0, size / 36)
    pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), np.float64)
    noise = rng.normal(0, rng.uniform(0, style.noise), pixels.shape)
    return (pixels + noise).clip(0, 255).astype(np.uint8)


# -------------------------------------------------------------------------------------------- preparing


def resize(picture: Pixels, height: int, width: int) -> NDArray[np.float32]:
    """Bilinear without smoothing, pixel centres at .5: what OpenCV's default `resize` computes, to 1/255."""

    def taps(old: int, new: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
        at = ((np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new)) - np.float32(0.5)
        at = at.clip(0, old - 1)
        low = at.astype(np.intp)
        return low, np.minimum(low + 1, old - 1), at - low.astype(np.float32)

    x = picture.astype(np.float32)
    low, high, part = taps(picture.shape[0], height)
    x = x[low] * (1 - part)[:, None, None] + x[high] * part[:, None, None]
    low, high, part = taps(picture.shape[1], width)
    x = x[:, low] * (1 - part)[None, :, None] + x[:, high] * part[None, :, None]
    return x.astype(np.float32)


def prepare(picture: Pixels, width: int) -> Array:
    """Picture [h, w, 3] red-green-blue to model input [3, 48, width], as rapidocr-onnxruntime does."""
    wanted = min(width, int(np.ceil(HEIGHT * picture.shape[1] / picture.shape[0])))
    small = np.round(resize(picture, HEIGHT, wanted))[:, :, ::-1]
    out = np.zeros((3, HEIGHT, width), np.float32)
    out[:, :, :wanted] = (small.transpose(2, 0, 1) / 255 - 0.5) / 0.5
    return out


# ------------------------------------------------------------------------------------------------- sets


def _line(split: str, seed: int, index: int, longest: int, style: Style) -> tuple[str, Pixels, int]:
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    line = text(rng, split, longest)
    families = FONTS[split]
    family = faces(families[rng.integers(len(families))])
    return line, draw(line, family[rng.integers(len(family))], style, rng), int(rng.integers(2))


def orientation(
    split: str, count: int, *, seed: int = 0, style: Style = PHOTO
) -> tuple[Array, NDArray[np.int64]]:
    """Crops [count, 3, 48, 192] and labels [count]: 0 upright, 1 turned by 180 degrees."""
    x = np.zeros((count, 3, HEIGHT, ORIENTATION_WIDTH), np.float32)
    labels = np.zeros(count, np.int64)
    for i in range(count):
        _, picture, turned = _line(split, seed, i, 16, style)
        x[i] = prepare(picture[::-1, ::-1] if turned else picture, ORIENTATION_WIDTH)
        labels[i] = turned
    return x, labels


def recognition(split: str, count: int, *, seed: int = 0, style: Style = CLEAN) -> tuple[Array, list[str]]:
    """Crops [count, 3, 48, 320] and what each says."""
    x = np.zeros((count, 3, HEIGHT, RECOGNITION_WIDTH), np.float32)
    texts = []
    for i in range(count):
        line, picture, _ = _line(split, seed, i, 20, style)
        x[i] = prepare(picture, RECOGNITION_WIDTH)
        texts.append(line)
    return x, texts


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes orientation sets as .npz (arrays x, labels).")
    parser.add_argument("sets", nargs="+", metavar="SPLIT=COUNT", help="e.g. train=2000 test=2000")
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for item in arguments.sets:
        split, _, count = item.partition("=")
        if split not in SPLITS or not count.isdecimal():
            parser.error(f"{item!r}: expected one of {', '.join(SPLITS)}, '=' and a number")
        x, labels = orientation(split, int(count), seed=arguments.seed)
        np.savez(arguments.output / f"{split}.npz", x=x, labels=labels)


if __name__ == "__main__":
    main()
