"""Records as a text table: protocols where there are any, and single figures."""

from __future__ import annotations

from weakly.evaluation.records import Record
from weakly.evaluation.table import render_protocols

COMMON = {"data": "menagerie", "split": "val", "images": 7, "supervision": "tags"}


def test_figures_without_a_protocol_have_columns_of_their_own() -> None:
    recall = Record(method="weaksam", row="proposals", recall=0.5, **COMMON)
    student = Record(method="weaksam", row="retrained", ap50=0.25, ap=0.125, corloc=1.0, **COMMON)
    header, _, *rows = render_protocols([recall, student]).splitlines()
    assert header.split() == ["method", "data", "images", "ap50", "ap", "corloc", "recall"]
    assert [row.split()[-4:] for row in rows] == [["-", "-", "-", "50.00"], ["25.00", "12.50", "100.00", "-"]]


def test_a_figure_that_a_protocol_states_has_no_second_column() -> None:
    seeds = Record(method="fma", row="seeds", miou=0.5, protocols={"semantic": {"miou": 0.5, "macc": 0.6}}, **COMMON)
    table = render_protocols([seeds])
    assert table.count("50.00") == 1 and table.count("60.00") == 1
