"""Orderings of a paper: what margins and spreads say about them."""

from __future__ import annotations

import pytest

from weakly.engine.orderings import Measured, figure_of, judge
from weakly.errors import UserError
from weakly.evaluation.records import Record
from weakly.methods.tables import Cell, Measure, Ordering, Row, Table, Tables


def table_of(*keys: str, ascending: tuple[str, ...] | None = None) -> Table:
    rows = tuple(Row(key, (key,), (Cell(0.5, Measure()),)) for key in keys)
    return Table("1", "t", ("row",), ("mIoU",), rows, (Ordering("claim", ascending or keys),))


def measured(*values: float) -> Measured:
    return Measured(dict(enumerate(values)))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        ((0.5,), (0.6,), "reproduced"),
        ((0.6,), (0.5,), "not reproduced"),
        ((0.5,), (0.5,), "not decidable here"),
        ((0.5,), (0.5004,), "not decidable here"),  # tables print both as 50.0
        ((0.50, 0.60, 0.70), (0.52, 0.62, 0.72), "reproduced"),  # paired: the difference has no spread
        ((0.50, 0.60, 0.70), (0.48, 0.58, 0.68), "not reproduced"),
        ((0.50, 0.60, 0.70), (0.60, 0.55, 0.71), "not decidable here"),
        ((), (0.5,), "not decidable here"),
    ],
)
def test_a_difference_must_exceed_its_spread(low, high, verdict):
    (judgement,) = judge(table_of("a", "b"), {"a": measured(*low), "b": measured(*high)})
    assert judgement.verdict == verdict == judgement.to_dict()["verdict"]


def test_repetitions_are_compared_with_their_own_kind():
    (judgement,) = judge(table_of("a", "b"), {"a": Measured({0: 0.1, 2: 0.5}), "b": Measured({1: 0.9, 2: 0.6})})
    (step,) = judgement.steps
    assert step.margin == pytest.approx(0.1) and step.spread is None


def test_a_chain_holds_only_as_a_whole():
    figures = {"a": measured(0.1), "b": measured(0.2), "c": measured(0.15)}
    (judgement,) = judge(table_of("a", "b", "c"), figures)
    assert [step.verdict for step in judgement.steps] == ["reproduced", "not reproduced"]
    assert judgement.verdict == "not reproduced"
    (judgement,) = judge(table_of("a", "b", "c"), {"a": measured(0.1), "b": measured(0.2)})
    assert judgement.verdict == "not decidable here"


def test_mean_and_spread():
    assert measured(0.2, 0.4).mean == pytest.approx(0.3)
    assert measured(0.2, 0.4).spread == pytest.approx(0.1 * 2**0.5)
    assert measured(0.2).spread is None and measured().mean is None


def test_figures_by_name():
    record = Record(method="m", data="d", split="s", images=1, miou=0.25, protocols={"dataset41": {"miou": 0.5}})
    assert figure_of(record, "miou") == 0.25 and figure_of(record, "dataset41.miou") == 0.5
    with pytest.raises(UserError, match="gave no ap50"):
        figure_of(record, "ap50")


def test_figures_of_the_details_are_found_at_any_depth():
    details = {
        "recall": {"seen": 0.5, "unseen": None},
        "voc07_ap50": 0.75,
        "kind": "boxes",
        "strict": {"iou": {"all": 1}},
    }
    record = Record(method="m", data="d", split="s", images=1, miou=0.25, details=details)
    assert figure_of(record, "details.recall.seen") == 0.5
    assert figure_of(record, "details.voc07_ap50") == 0.75
    assert figure_of(record, "details.strict.iou.all") == 1.0
    for name in ("recall", "recall.unseen", "recall.seen.all", "precision", "kind"):
        with pytest.raises(UserError, match=rf"gave no details\.{name}"):
            figure_of(record, f"details.{name}")
    plain = Record(method="m", data="d", split="s", images=1, miou=0.25)
    with pytest.raises(UserError, match="gave no details"):
        figure_of(plain, "details.recall.seen")


def test_tables_that_contradict_themselves_are_mistakes_of_the_program():
    with pytest.raises(ValueError, match="not measured"):
        table_of("a", "b", ascending=("a", "c"))
    with pytest.raises(ValueError, match="same key"):
        table_of("a", "a")
    with pytest.raises(ValueError, match="does not fit"):
        Table("1", "t", ("row", "more"), ("mIoU",), (Row("a", ("a",), (Cell(),)),))
    with pytest.raises(ValueError, match="reference"):
        Measure(scored="targets")
    with pytest.raises(ValueError, match="student"):
        Measure(scored="reference", reference=("a", "b"), after={"x": 1})


def test_tables_are_chosen_by_number():
    tables = Tables(tables=(table_of("a"), table_of("b")))
    assert tables.choose(None) == tables.tables
    with pytest.raises(UserError, match="no table '7' to reproduce; choose from 1, 1"):
        tables.choose(("7",))
