"""The HTML report: complete, escaped, self-contained, small, and well-formed for screen readers."""

import itertools
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from report_tools import full_report

from condensec.report import (
    Cycle,
    Figures,
    GraphNode,
    GroupSummary,
    Guard,
    LayerCut,
    ModelInfo,
    NodeTime,
    ParetoPoint,
    Report,
    TargetResult,
    html,
    runs,
)
from condensec.report import charts as draw
from condensec.report.svg import Chart, Mark, Series, _shades, line_chart, strip, ticks

EVIL = "<script>alert('x')</script>\"'&{{ 7*7 }}"
VOID = {"meta", "link", "br", "input", "img", "hr"}


class Page(HTMLParser):
    """Elements with their attributes; fails on tags that don't nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def report() -> Report:
    return full_report()


def test_every_station_has_its_section(report):
    page = Page(html.render(report))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    sections = [
        "summary",
        "targets",
        "pareto",
        "cycles",
        "sensitivity",
        "layers",
        "nodes",
        "graph",
        "groups",
        "proof",
        "healing",
        "time",
        "again",
    ]
    assert set(sections) <= set(ids)
    assert {a["href"][1:] for a in page.all("a")} <= set(ids)
    text = " ".join(" ".join(page.words).split())
    for said in ("99.47%", "0.447x", "[0.444, 0.451]", "3.1e-06", "lines.npz", report.command, "9b" * 32):
        assert said in text


def test_a_layer_has_a_strip_and_a_group_its_row_of_the_heat_map(report):
    page = Page(html.render(report))
    strips = [a for a in page.all("svg") if "strip" in (a.get("class") or "")]
    assert len(strips) == len(report.layers)
    cells = [a for a in page.all("td") if (a.get("style") or "").startswith("--v:")]
    assert len(cells) == len(report.sensitivity) * 5
    heats = [float((a["style"] or "").removeprefix("--v:")) for a in cells]
    assert min(heats) >= 0
    assert max(heats) == 1.0
    cut = sum(g.kept < g.size for g in report.groups)
    assert sum("chosen" in (a.get("class") or "") for a in cells) == cut


def test_shares_that_few_groups_have_stand_in_one_column(report):
    rows = {"a": {"0.5": 1.0, "0.0156": 4.0}, "b": {"0.5": 0.25, "0.0625": 2.0}, "c": {"0.5": None}}
    heat = draw.heat_map(replace(report, sensitivity=rows, groups=()))
    assert heat is not None
    assert heat.shares == ("0.5", "fewer")
    cells = {row.id: [(cell.text, cell.heat) for cell in row.cells] for row in heat.rows}
    assert cells == {
        "a": [("1.00", 0.5), ("4.00", 1.0)],
        "b": [("0.25", 0.25), ("2.00", 0.707)],
        "c": [("–", 0.0), ("–", 0.0)],
    }
    assert draw.heat_map(replace(report, sensitivity={"a": {"0.5": None}})) is None


def test_nothing_is_loaded_from_anywhere(report):
    text = html.render(report)
    page = Page(text)
    assert len(page.all("script")) == 1
    assert "src" not in page.all("script")[0]
    assert not page.all("img")
    assert not re.search(r"https?://|@import|url\(", text)
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert [a["href"] for a in page.all("link")] == ["data:,"]


def test_everything_from_outside_is_escaped(report):
    evil = replace(
        report,
        model=replace(report.model, file=EVIL, producer=EVIL, inputs={EVIL: EVIL}),
        status=EVIL,
        targets={
            EVIL: replace(
                report.targets["host"],
                description=EVIL,
                precision=EVIL,
                notes=(EVIL,),
                nodes=(NodeTime(EVIL, EVIL, 1.0),),
            )
        },
        sensitivity={EVIL: {"0.5": 0.1}},
        layers=(LayerCut(EVIL, EVIL, 4, 2, 8, 4, EVIL), LayerCut(EVIL, EVIL, 4, 4, reason=EVIL)),
        groups=(GroupSummary(EVIL, EVIL, 4, 2, True, (EVIL,)),),
        cycles=(Cycle(1, 0.9, 0.1, 0.1, False, 1.0, healed_how=EVIL, note=EVIL),),
        environment={EVIL: EVIL},
        graph=(GraphNode(EVIL, EVIL, (), (EVIL,)),),
        pareto=(ParetoPoint(1, 0.5, 1, 1, 0.5, EVIL, EVIL),),
        command=EVIL,
        notes=(EVIL,),
        warnings=(EVIL,),
    )
    page = Page(html.render(evil))
    assert len(page.all("script")) == 1, "the page's own"
    assert not any(name.startswith("on") for _, a in page.elements for name in a)
    assert "49" not in " ".join(word for word in page.words if "alert" in word)


def test_an_empty_report_is_a_page_too():
    bare = Report(ModelInfo("m.onnx"), 0, "dry_run", Figures(0, 0, 0), Figures(0, 0, 0))
    page = Page(html.render(bare))
    text = " ".join(page.words)
    assert "not measured" in text
    assert "Nothing was checked" in text
    targets = {"nvidia-t4": TargetResult(unavailable="no parser"), "host": TargetResult()}
    assert "no parser" in html.render(replace(bare, targets=targets))


def test_it_can_be_read_without_seeing_it(report):
    text = html.render(report)
    page = Page(text)
    assert page.all("html")[0]["lang"] == "en"
    assert text.count("<caption>") == len(page.all("table")) > 5
    assert all(a.get("scope") in ("col", "row") for a in page.all("th") if a.get("class") != "num small soft")
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert drawings
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert root.get("role") == "img"
        assert root[0].tag == "title"
        assert root[0].text
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    for attributes in (a for _, a in page.elements if a.get("role") == "region"):
        assert attributes["aria-label"]
        assert attributes["tabindex"] == "0"


def test_a_model_of_500_layers_stays_under_two_megabytes(report):
    rng = random.Random(0)
    layers = tuple(
        LayerCut(f"model/layers.{i}/a/long/name/Conv", "Conv", 512, 256, 10**9, 10**8, f"g{i}", kept)
        for i in range(500)
        for kept in (runs(sorted(rng.sample(range(512), 256))),)
    )
    groups = tuple(GroupSummary(f"g{i}", "channel", 512, 256, True, ("w" * 40,) * 5) for i in range(500))
    sensitivity = {g.id: dict.fromkeys(("0.875", "0.75", "0.5", "0.25", "0.125"), 0.1) for g in groups}
    big = replace(report, layers=layers, groups=groups, sensitivity=sensitivity)
    assert len(html.render(big).encode()) < 2_000_000


def test_the_file_is_written_whole(report, tmp_path):
    html.write_html(report, tmp_path / "report.html")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8").endswith("</html>\n")


def test_strips_show_which_units_stay():
    root = ElementTree.fromstring(str(strip(8, ((0, 1), (5, 5)), "3 of 8 kept")))
    assert [r.get("d") for r in root if r.get("class") == "kept"] == ["M0 0h2v1h-2zM5 0h1v1h-1z"]
    assert root.get("viewBox") == "0 0 8 1"


def test_a_strip_finer_than_the_screen_is_shaded_by_what_stays():
    every_other = runs(range(0, 512, 2))
    quarter = runs([i for i in range(512, 1024) if i % 4 == 0])
    shades = _shades(1024, every_other + quarter)
    assert {level: len(spans) for level, spans in shades.items()} == {0.5: 32, 0.25: 32}
    assert shades[0.5][0] == (0, 16)
    assert _shades(1000, runs(range(1000))) == {1.0: [(0, 1000)]}


def test_charts_put_points_where_they_belong():
    series = Series("a", "s-after", (Mark(0, 0.0, "low"), Mark(5, None), Mark(10, 1.0, "high")))
    root = ElementTree.fromstring(str(line_chart(Chart("t", (series,), "x", "{:g}".format, zero=True))))
    low, high = root.iter("circle")
    assert float(low.get("cx", 0)) < float(high.get("cx", 0))
    assert float(low.get("cy", 0)) > float(high.get("cy", 0))
    (path,) = root.iter("path")
    assert path.get("d", "").count("M") == 2  # the gap isn't bridged


@pytest.mark.parametrize(
    ("low", "high", "whole", "expected"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 8, True, [0, 2, 4, 6, 8]),
        (0.93, 0.951, False, [0.93, 0.935, 0.94, 0.945, 0.95]),
    ],
)
def test_ticks_are_round(low, high, whole, expected):
    assert ticks(low, high, 5, whole=whole) == pytest.approx(expected)


def test_the_guard_is_a_line_on_the_right_side_of_the_original(report):
    rules = draw._guard_rules(Guard(1.0, baseline=0.95), report.after.metric)
    assert [r.y for r in rules] == pytest.approx([0.95, 0.94])
    lower = replace(report.after.metric, higher_is_better=False, unit_points=1.0)
    assert [r.y for r in draw._guard_rules(Guard(0.1, baseline=0.5), lower)] == pytest.approx([0.5, 0.6])
    assert draw._guard_rules(Guard(None), report.after.metric) == ()


def test_the_sizes_are_drawn_from_small_to_whole(report):
    root = ElementTree.fromstring(str(draw.pareto(report)))
    xs = [float(dot.get("cx", 0)) for dot in root.iter("circle")]
    assert len(xs) == len(report.pareto) + 1
    assert xs == sorted(xs)
    assert "latency" in draw.pareto_axis(report)
    unknown = replace(report, pareto=(replace(report.pareto[0], ratio=None), *report.pareto[1:]))
    assert "MACs" in draw.pareto_axis(unknown)
    first = next(ElementTree.fromstring(str(draw.pareto(unknown))).iter("title"))
    assert "MACs" in (first.text or "")
    assert draw.pareto(replace(report, pareto=())) == ""


def test_nodes_too_quick_for_a_row_are_added_up():
    times = (
        NodeTime("a", "Conv", 8.0, 4.0),
        NodeTime("b", "Conv", None, 2.0),
        NodeTime("c", "Relu", 0.001, 0.002),
    )
    shown = draw.node_rows(TargetResult(nodes=times))
    assert [n.name for n in shown.rows] == ["a", "b"]
    assert shown.top == 8.0
    assert shown.rest == (0.001, 0.002)
    assert draw.node_rows(TargetResult(nodes=times[:2])).rest is None
