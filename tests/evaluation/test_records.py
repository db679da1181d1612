"""Records: flat, complete, and refused without split, images or a named figure."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from weakly.errors import UserError, WeaklyError
from weakly.evaluation.records import Record, read_records, update_records, write_records
from weakly.evaluation.table import render_protocols

FIGURES = {"dataset41": {"miou": 0.5, "macc": 0.6}}


def record(**changes: Any) -> Record:
    given = {"method": "wps", "data": "menagerie", "split": "val", "images": 10, "protocols": FIGURES}
    return Record(**{**given, **changes})


def test_nothing_that_was_not_measured_is_written() -> None:
    written = record(
        seed=0,
        protocols={**FIGURES, "official_rowwise": {"miou": math.nan, "macc": None}},
        per_class=[{"name": "Head", "iou": None, "acc": 0.5}],
    ).to_dict()
    assert written == {
        "method": "wps",
        "data": "menagerie",
        "split": "val",
        "images": 10,
        "seed": 0,
        "protocols": FIGURES,
        "per_class": [{"name": "Head", "acc": 0.5}],
    }


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "results" / "wps-menagerie.json"
    records = [record(published=0.6893, seconds=1.5), record(method="fma", protocols=None, miou=0.7, null_images=0)]
    write_records(path, records)
    assert list(json.loads(path.read_text())) == ["records"]
    assert read_records(path) == records
    assert [child.name for child in path.parent.iterdir()] == [path.name]  # No temporary file stays.


def test_update_replaces_the_same_measurement_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    update_records(path, [record(seed=0), record(seed=1)])
    update_records(path, [record(seed=0, seconds=9.0), record(seed=2)])
    assert [(r.seed, r.seconds) for r in read_records(path)] == [(0, 9.0), (1, None), (2, None)]


@pytest.mark.parametrize(
    "field", ["method", "preset", "supervision", "row", "setting", "segmenter", "data", "split", "seed"]
)
def test_every_part_of_the_identity_tells_measurements_apart(tmp_path: Path, field: str) -> None:
    other = record(**{field: 7 if field == "seed" else "other"})
    assert len(update_records(tmp_path / "r.json", [record(), other])) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": ""}, "needs a split"),
        ({"data": None}, "needs a data"),
        ({"images": 0}, "positive number of images"),
        ({"images": True}, "positive number of images"),
        ({"protocols": None}, "needs a figure with its name"),
        ({"protocols": {}}, "needs a figure with its name"),
        ({"protocols": 0.5}, "protocols of a record are 0.5"),
        ({"protocols": {"dataset41": 0.5}}, "map each protocol's name"),
        ({"protocols": {"dataset41": {"miou": math.nan}}}, "needs a figure with its name"),
        ({"miou": math.inf}, "figure miou"),
        ({"protocols": {"dataset41": {"miou": 54.0}}}, "dataset41.miou of a record is 54.0; write a fraction"),
        ({"miou": "0.5"}, "figure miou"),
    ],
)
def test_an_incomplete_record_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        record(**changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has no list of records"),
        ('{"records": {}}', "has no list of records"),
        ('{"records": [3]}', r"records\[0\]: is not an object"),
        ('{"records": [{"method": "wps", "data": "d", "images": 3, "miou": 0.5}]}', r"records\[0\]: has no split"),
        ('{"records": [{"iou": 0.5}]}', "unknown field 'iou'"),
        (
            '{"records": [{"method": "wps", "data": "d", "split": "val", "images": 3}]}',
            r"records\[0\]: A record needs a figure",
        ),
    ],
)
def test_a_malformed_file_is_one_sentence_with_file_and_index(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"broken\.json: .*{message}|broken\.json: {message}"):
        read_records(path)


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_records(tmp_path / "none.json")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.mkdir()  # The final replacement fails.
    (path / "kept").touch()
    with pytest.raises(WeaklyError, match=r"metrics\.json"):
        write_records(path, [record()])
    assert [child.name for child in tmp_path.iterdir()] == ["metrics.json"]


def test_table_names_protocol_split_images_and_resolution() -> None:
    rows = [
        record(preset="bundled", supervision="box", resolution=128),
        record(method="oracle", protocols={"pair_binary": {"miou": 0.25}, "other": {"macc": 1.0}}),
    ]
    lines = render_protocols(rows).splitlines()
    assert lines[0].split() == ["dataset41", "pair_binary", "other"]
    assert lines[-2].split() == [
        "wps",
        "bundled",
        "box",
        "menagerie",
        "val",
        "@",
        "128",
        "10",
        "50.00",
        "/",
        "60.00",
        "-",
        "/",
        "-",
        "-",
        "/",
        "-",
    ]
    assert "25.00 / -" in lines[-1]
    assert "- / 100.00" in lines[-1]
