"""Draws the pictures of the axis algebra: `python docs/drawings.py` writes docs/images/*.svg.

Every box is a tensor's axis, drawn as its units; the same colour means: cut together, unit by unit.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "images"
BLUE, ORANGE, GREEN, GREY = "#3b7dd8", "#e08a2e", "#3a9d6a", "#9aa0a6"
INK, PAPER = "#202124", "#ffffff"
CELL = 12


class Picture:
    """A drawing under construction."""

    def __init__(self, name: str, title: str, width: int, height: int) -> None:
        self.name, self.title, self.width, self.height = name, title, width, height
        self.parts: list[str] = []

    def text(
        self, x: float, y: float, text: str, size: int = 13, weight: str = "normal", anchor: str = "start"
    ) -> None:
        """A line of text."""
        self.parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}"'
            f' fill="{INK}">{text}</text>'
        )

    def cells(
        self, x: float, y: float, colors: list[str], gone: tuple[int, ...] = (), down: bool = False
    ) -> None:
        """An axis: one cell a unit; units in `gone` are crossed out."""
        for i, color in enumerate(colors):
            a, b = (x, y + i * CELL) if down else (x + i * CELL, y)
            fill, edge = (PAPER, color) if i in gone else (color, PAPER)
            self.parts.append(
                f'<rect x="{a}" y="{b}" width="{CELL}" height="{CELL}" fill="{fill}" stroke="{edge}"/>'
            )
            if i in gone:
                self.parts.append(
                    f'<path d="M{a} {b}l{CELL} {CELL}m0 -{CELL}l-{CELL} {CELL}" stroke="{color}"/>'
                )

    def box(self, x: float, y: float, width: float, height: float, text: str) -> None:
        """A node."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{PAPER}" stroke="{GREY}"/>'
        )
        self.text(x + width / 2, y + height / 2 + 4, text, 13, "600", "middle")

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through points, with a head."""
        path = "M" + "L".join(f"{x} {y}" for x, y in points)
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{GREY}" stroke-width="1.5" marker-end="url(#a)"/>'
        )

    def save(self) -> None:
        """Write the SVG."""
        body = "\n".join(self.parts)
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{self.name}.svg").write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img"'
            f' font-family="system-ui, sans-serif">\n<title>{self.title}</title>\n'
            f'<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
            f' orient="auto"><path d="M0 0L8 4L0 8z" fill="{GREY}"/></marker></defs>\n'
            f'<rect width="{self.width}" height="{self.height}" rx="8" fill="{PAPER}"/>\n{body}\n</svg>\n',
            "utf-8",
        )


def residual() -> None:
    """A residual block: which axes are one."""
    p = Picture(
        "axes-residual", "A residual block: axes of the same colour can only be cut together", 720, 300
    )
    p.text(20, 28, "A residual block: the same colour is the same axis", 15, "600")
    gone = (1, 4)
    y = 90
    p.text(20, y + 30, "x: 6 channels")
    p.cells(20, y, [BLUE] * 6)
    for x, label, rows, columns, cut in (
        (170, "conv1", [ORANGE] * 6, [BLUE] * 6, "rows"), (390, "conv2", [BLUE] * 6, [ORANGE] * 6, "columns"),
    ):  # fmt: skip
        p.box(x, y - 24, 130, 30, label)
        p.text(x + 24, y + 30, "weight, in \u2192")
        p.cells(x + 24, y + 40, columns, gone if cut == "columns" else ())
        p.cells(x + 6, y + 58, rows, gone if cut == "rows" else (), down=True)
        for row in range(6):
            for column in range(6):
                dead = (row in gone) if cut == "rows" else (column in gone)
                shade = "#ffffff" if dead else "#eceff1"
                at = f'x="{x + 24 + column * CELL}" y="{y + 58 + row * CELL}"'
                p.parts.append(f'<rect {at} width="{CELL}" height="{CELL}" fill="{shade}" stroke="#cfd8dc"/>')
        p.text(x + 104, y + 100, "out \u2193")
    p.cells(306, y - 15, [ORANGE] * 6, gone)
    p.arrow((96, y + 6), (165, y - 8))
    p.arrow((379, y - 9), (389, y - 9))
    p.box(590, y - 24, 50, 30, "Add")
    p.arrow((520, y - 9), (588, y - 9))
    p.arrow((58, y - 2), (58, 46), (615, 46), (615, y - 26))
    p.arrow((640, y - 9), (700, y - 9))
    p.cells(640, y + 14, [BLUE] * 6)
    p.text(
        20,
        262,
        "Orange lives inside: two units leave conv1's rows and conv2's columns, and nothing else notices.",
    )
    p.text(
        20,
        282,
        "Blue is tied by the Add to the block's input, and through it to every block before and behind.",
    )
    p.save()


def layouts() -> None:
    """Atoms, sums and products."""
    p = Picture("axes-layouts", "Sum and product: an axis behind Concat, and one behind Reshape", 720, 320)
    p.text(20, 28, "Sum: one axis behind the other (Concat)", 15, "600")
    p.text(20, 62, "a")
    p.cells(40, 52, [BLUE] * 4, (2,))
    p.text(20, 92, "b")
    p.cells(40, 82, [ORANGE] * 6, (0,))
    p.box(170, 58, 80, 30, "Concat")
    p.arrow((92, 58), (166, 70))
    p.arrow((116, 88), (166, 78))
    p.arrow((250, 73), (280, 73))
    p.text(300, 58, "a ++ b")
    p.cells(300, 66, [*[BLUE] * 4, *[ORANGE] * 6], (2, 4))
    p.text(450, 76, "unit 0 of b is unit 4 here")

    p.text(20, 140, "Product: every unit of one for each unit of the other (Flatten, heads)", 15, "600")
    p.text(20, 174, "channels c")
    p.cells(100, 164, [GREEN] * 3, (1,))
    p.text(20, 198, "pixels p")
    p.cells(100, 188, [GREY] * 4)
    p.box(190, 170, 80, 30, "Flatten")
    p.arrow((150, 180), (186, 184))
    p.arrow((270, 185), (296, 185))
    p.text(300, 170, "c \u00d7 p")
    p.cells(300, 178, [GREEN] * 12, (4, 5, 6, 7))
    p.text(460, 188, "one channel is four places")

    p.text(20, 240, "The same for attention: 384 = 6 heads \u00d7 64", 15, "600")
    p.box(20, 254, 150, 30, "[tokens, 384]")
    p.box(220, 254, 90, 30, "Reshape")
    p.box(360, 254, 170, 30, "[tokens, 6, 64]")
    p.arrow((170, 269), (216, 269))
    p.arrow((310, 269), (356, 269))
    p.text(
        20,
        306,
        "From here on it is a product everywhere it occurs: in query, key, value, and what comes behind.",
    )
    p.save()


if __name__ == "__main__":
    residual()
    layouts()
