"""The closing table: 80 columns, the report's numbers, honest words."""

from dataclasses import replace
from pathlib import Path

import pytest

from condensec.report import (
    Budget,
    Check,
    Guard,
    Latency,
    MetricValue,
    Report,
    TargetResult,
    Verification,
    read_report,
    terminal,
)
from condensec.report import format as fmt

SAMPLE = Path(__file__).parent / "data" / "report.json"


@pytest.fixture
def report() -> Report:
    return read_report(SAMPLE)


def row(text: str, start: str) -> list[str]:
    return next(line for line in text.splitlines() if line.strip().startswith(start)).split()


@pytest.mark.parametrize("width", [60, 80])
def test_no_line_is_wider_than_the_terminal(report, width):
    long = "a-very-long-target-name-that-somebody-made-up-in-a-toml-file"
    wide = replace(
        report,
        model=replace(report.model, file="/a/long/path" * 12 + "/model.onnx"),
        targets={long: report.targets["host"]} | dict(report.targets),
        warnings=("w" * 200, "a sentence " * 30),
    )
    lines = terminal.text(wide, width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert sum("0.447x" in line for line in lines) == 3  # two targets and a note


def test_it_shows_the_figures(report):
    text = terminal.text(report)
    assert row(text, "parameters") == ["parameters", "135", "k", "61.2", "k", "-54%"]
    assert row(text, "top-1")[2:5] == ["99.60%", "99.47%", "-0.13"]
    assert row(text, "host") == ["host", "int8", "2.71", "1.21", "0.447x", "[0.444,", "0.451]", "measured"]
    assert row(text, "mobile-cpu")[-1] == "modelled"
    assert "2 min 42 s, peak memory 612 MiB" in text


def test_plain_text_has_no_escapes_and_colour_has(report):
    assert "\x1b" not in terminal.text(report)
    assert "\x1b[32m" in terminal.text(report, color=True)


def test_names_that_look_like_markup_are_shown_as_they_are(report):
    odd = replace(report, targets={"[red]host": report.targets["host"]}, notes=("[bold]x[/bold] :smile:",))
    text = terminal.text(odd)
    assert "[red]host" in text
    assert "[bold]x[/bold] :smile:" in text


def test_a_goal_nobody_asked_for_is_no_failure(report):
    goal = Budget("latency<=0.5x", False, 0.7, "host", asked=False)
    text = terminal.text(replace(report, budgets=(goal,)), color=True)
    line = next(line for line in text.splitlines() if "latency<=0.5x" in line)
    assert "goal" in line
    assert "not required, reached 0.7" in line
    assert "\x1b[31m" not in line
    assert "\x1b[31m" in terminal.text(replace(report, budgets=(replace(goal, asked=True),)), color=True)


def test_without_a_metric_it_says_that_accuracy_was_not_measured(report):
    bare = replace(
        report, before=replace(report.before, metric=None), after=replace(report.after, metric=None)
    )
    assert row(terminal.text(bare), "accuracy") == ["accuracy", "–", "–", "–", "not", "measured"]


def test_what_failed_is_named(report):
    failed = replace(
        report,
        verification=Verification(Check(3, 353.0, 1e-4, passed=False)),
        targets={"nvidia-t4": TargetResult(unavailable="no TensorRT parser is installed")},
        guard=Guard(0.5, 0.9, kept=False),
    )
    text = " ".join(terminal.text(failed).split())
    assert "3 exact groups DIFFER from the masked original, largest difference 3.5e+02" in text
    assert "no TensorRT parser is installed" in text
    assert "lost 0.90 on the validation split" in text


@pytest.mark.parametrize(
    ("ratio", "ci95", "how", "said"),
    [
        (0.5, (0.49, 0.51), "measured", "2.00x faster"),
        (0.98, (0.96, 1.01), "measured", "as fast as before"),
        (1.5, (1.4, 1.6), "measured", "1.50x slower"),
        (0.5, None, "modelled", "2.00x faster (modelled)"),
        (None, None, "measured", "latency unknown"),
    ],
)
def test_a_win_is_claimed_only_where_the_interval_says_so(ratio, ci95, how, said):
    assert fmt.speed(TargetResult(how, Latency(), ratio, ci95)) == said


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999_500, "1.00 M"),
        (272_474, "272 k"),
        (40_813_184, "40.8 M"),
        (1.2e10, "12.0 G"),
    ],
)
def test_counts_have_three_digits(value, text):
    assert fmt.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.05, "0.05 s"), (71.24, "71.2 s"), (725, "12 min 5 s"), (3599.7, "1 h 0 min"), (7380, "2 h 3 min")],
)
def test_durations(value, text):
    assert fmt.seconds(value) == text


def test_sizes_and_changes():
    assert fmt.size(1_097_000) == "1.10 MB"
    assert fmt.size(512) == "512 B"
    assert fmt.change(100, 37) == "-63%"
    assert fmt.change(100, 100.01) == "0%"
    assert fmt.change(0, 5) == "–"


@pytest.mark.parametrize(
    ("name", "unit", "values", "said"),
    [
        ("top1", 100.0, (0.9306, 0.9270), ("93.06%", "92.70%", "-0.36 points")),
        ("cosine", 100.0, (1.0, 0.99871), ("1.0000", "0.9987", "-0.13 points")),
        ("mse", 1.0, (0.0, 0.01234), ("0", "0.01234", "+0.0123")),
        ("agreement", 100.0, (1.0, 1.0), ("100.00%", "100.00%", "0 points")),
        ("top1", 100.0, (0.5, None), ("50.00%", "–", "–")),
    ],
)
def test_a_metric_is_shown_in_its_own_notation(name, unit, values, said):
    metric = MetricValue(name, values[1], 2000, unit_points=unit)
    shown = tuple(fmt.metric_value(value, metric) for value in values)
    assert (*shown, fmt.points(*values, metric)) == said


def test_the_headline_says_it_in_one_sentence(report):
    assert fmt.headline(report) == (
        "2.24x faster on host, 2.32x faster (modelled) on mobile-cpu, 54% fewer parameters, "
        "57% fewer MACs, top-1 accuracy 99.47% (-0.13 points)"
    )
