"""Charts, curves and score tables: what is drawn is what was measured."""

from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weakly.report.charts import (
    BarRow,
    Curve,
    bar_chart,
    line_chart,
    log_ticks,
    percent,
    short_number,
    shorten,
    thin,
    ticks,
)
from weakly.report.curves import group_curves, read_curves
from weakly.report.scores import compare_classes, headlines, score_columns, score_rows
from weakly.vocabulary import Category, Vocabulary


def polyline(svg):
    return [
        [tuple(map(float, pair.split(","))) for pair in match.split()] for match in re.findall(r'points="([^"]*)"', svg)
    ]


def test_a_rising_curve_rises_from_left_to_right():
    (points,) = polyline(line_chart("val", [Curve("val", [0, 5, 10], [1.0, 2.0, 3.0])]))
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)  # y runs downwards in SVG


def test_nan_breaks_a_line_and_a_lone_value_is_a_dot():
    svg = line_chart("val", [Curve("val", [0, 1, 2, 3], [1.0, 2.0, math.nan, 3.0])])
    assert [len(stretch) for stretch in polyline(svg)] == [2, 1]
    assert svg.count("<circle") == 1


@pytest.mark.parametrize(("title", "log"), [("loss", 1), ("lr", 0)])
def test_only_losses_that_span_decades_get_a_log_axis(title, log):
    assert f'data-log="{log}"' in line_chart(title, [Curve(title, [0, 1], [100.0, 0.1])])


def test_a_constant_curve_can_be_drawn():
    assert polyline(line_chart("lr", [Curve("lr", [7], [0.0])]))


def test_long_curves_become_means_of_equal_groups():
    curve = thin(Curve("a", list(range(1000)), [float(i % 2) for i in range(1000)]), 100)
    assert len(curve.x) == 100
    assert curve.x[-1] == 999
    assert set(curve.y) == {0.5}


def test_thinning_keeps_a_gap_only_where_a_whole_group_is_nan():
    curve = thin(Curve("a", range(6), [1.0, math.nan, math.nan, math.nan, 2.0, 4.0]), 3)
    assert curve.y[0] == 1.0
    assert math.isnan(curve.y[1])
    assert curve.y[2] == 3.0


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6))
def test_ticks_are_few_and_inside(low, span):
    found = ticks(low, low + span)
    assert 1 <= len(found) <= 6
    assert all(low - 1e-6 * span <= tick <= low + span + 1e-6 * span for tick in found)


def test_ticks_of_a_wide_log_axis_are_decades():
    assert log_ticks(-2.5, 1.5) == [-2.0, -1.0, 0.0, 1.0]


@pytest.mark.parametrize(("value", "text"), [
    (0, "0"), (0.5, "0.5"), (1200, "1.2k"), (38370, "38.4k"), (2.5e6, "2.5M"), (3e-4, "3e-4"), (3.1e-4, "3.1e-4"),
    (2.28e-10, "2.28e-10"),
])  # fmt: skip
def test_numbers_are_short(value, text):
    assert short_number(value) == text


def test_percentages_and_long_names():
    assert percent(0.4567) == "45.7"
    assert percent(math.inf) == percent(None) == "–"
    assert shorten("Side Mirror of a car", 8) == "Side Mi…"


def test_bars_have_the_length_of_their_values():
    rows = [BarRow("Fish Head", "Head", (0.5,), 1.0), BarRow("Fish Tail", "Tail", (None,), None)]
    svg = bar_chart("Fish", rows, ["wps"], "oracle")
    full = float(re.search(r'class="ref"[^>]*width="([\d.]+)"', svg)[1])
    half = float(re.search(r'class="bar s0"[^>]*width="([\d.]+)"', svg)[1])
    assert half == pytest.approx(full / 2, abs=0.1)
    assert svg.count('class="bar s0"') == 1
    assert "Fish Tail: wps –, oracle –" in svg


def test_a_log_of_json_lines_becomes_curves(tmp_path):
    rows = [
        {"step": 10, "epoch": 0, "seconds": 1.5, "train/loss": 3.0, "lr": 0.1},
        {"step": 20, "train/loss": 9.0},
        {"step": 20, "train/loss": 2.0, "note": "repeated after a resume", "flag": True},
        {"step": 20, "val/loss": 2.5},
        {"step": 30, "train/loss": None},
    ]
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(map(json.dumps, rows)) + '\n[1, 2]\n{"step": 40, "train/lo', encoding="utf-8")
    curves = {curve.name: curve for curve in read_curves(log)}
    assert set(curves) == {"train/loss", "val/loss", "lr"}
    assert (curves["train/loss"].x, curves["train/loss"].y) == ([10.0, 20.0], [3.0, 2.0])
    assert read_curves(tmp_path / "none.jsonl") == []


def test_training_and_validation_of_one_quantity_share_a_panel():
    names = ["lr", "train/class_loss", "train/loss", "val/miou", "val/loss"]
    panels = group_curves([Curve(name, [0], [0.0]) for name in names])
    assert [panel.title for panel in panels] == ["loss", "class_loss", "miou", "lr"]
    assert [curve.name for curve in panels[0].curves] == ["train/loss", "val/loss"]


def part_record(method, supervision, ious, split="val"):
    per_class = [{"name": name, "iou": iou} for name, iou in ious.items()]
    protocols = {"dataset41": {"miou": 0.4, "macc": 0.5}}
    return {
        "method": method, "supervision": supervision, "data": "d", "split": split, "images": 2,
        "protocols": protocols, "per_class": per_class,
    }  # fmt: skip


VOCABULARY = Vocabulary(tuple(Category(f"{o} {p}", o) for o in ("Fish", "Bird") for p in ("Head", "Tail")))


def test_classes_are_grouped_by_object_with_the_largest_gap_first():
    ours = part_record("wps", "box", {"Fish Head": 0.7, "Fish Tail": 0.6, "Bird Head": 0.5, "Bird Tail": 0.1})
    bound = part_record("oracle", "box", {"Fish Head": 0.8, "Fish Tail": 0.9, "Bird Head": 0.7, "Bird Tail": 0.9})
    ours["per_class"].append({"name": "background", "iou": 0.99})
    comparison = compare_classes([bound, ours], VOCABULARY)
    assert comparison is not None
    assert [group.name for group in comparison.groups] == ["Bird", "Fish", ""]
    assert [row.label for row in comparison.groups[0].rows] == ["Tail", "Head"]
    assert [row.label for row in comparison.groups[1].rows] == ["Tail", "Head"]
    assert comparison.groups[0].rows[0].gap == pytest.approx(0.8)
    assert comparison.groups[2].rows[0].name == "background"


def test_a_method_is_compared_with_the_upper_bound_of_its_own_supervision_and_split():
    records = [
        part_record("oracle", "box", {"a": 0.9}),
        part_record("oracle", "point", {"a": 0.6}),
        part_record("oracle", "point", {"a": 0.1}, split="test"),
        part_record("wps", "point", {"a": 0.5}),
    ]
    (headline,) = headlines(records)
    assert headline.reference == "oracle · point"
    assert compare_classes(records).groups[0].rows[0].reference == 0.6


def test_without_an_upper_bound_there_is_no_ratio():
    (headline,) = headlines([part_record("wps", "box", {"a": 0.5})])
    assert headline.reference is None
    assert headline.ratio is None
    assert compare_classes([]) is None
    assert headlines([part_record("oracle", "box", {"a": 0.5})]) == []


def test_two_runs_that_read_alike_are_told_apart_by_preset():
    comparison = compare_classes(
        [part_record("wps", "box", {"a": 0.5}) | {"preset": preset} for preset in ("paper", "official")]
    )
    assert comparison.series == ("wps · box · paper", "wps · box · official")


def test_cells_follow_the_columns():
    record = part_record("wps", "box", {"a": 0.5}) | {"recall": 0.25, "published": 0.6893, "seconds": 7300}
    columns = score_columns([record])
    (row,) = score_rows([record], columns)
    assert [column.name for column in columns][-1] == ""
    assert row.cells == ("40.0", "50.0", "–", "–", "–", "–", "–", "–", "25.0")
    assert (row.published, row.seconds) == ("68.9", "2 h 1 min")


def test_a_part_that_is_nowhere_in_the_split_has_no_bar() -> None:
    common = {"method": "wps", "supervision": "box", "data": "d", "split": "val", "images": 1}
    there, absent = (
        {"name": "Car Body", "object": "Car", "iou": 0.5},
        {"name": "Bird Head", "object": "Bird", "iou": None},
    )
    found = compare_classes([{**common, "protocols": {}, "per_class": [there, absent]}])
    assert found is not None
    assert [(group.name, [row.label for row in group.rows]) for group in found.groups] == [("Car", ["Body"])]
