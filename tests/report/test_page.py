"""The page: everything given is on it, nothing is loaded from elsewhere, no text becomes markup."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import escape

from weakly.evaluation.protocols import PROTOCOLS
from weakly.evaluation.semantic import SEMANTIC_PROTOCOLS
from weakly.report.charts import Curve
from weakly.report.page import (
    MOST_GALLERY_ROWS,
    GalleryRow,
    ProblemLine,
    Repeat,
    ReportPage,
    render_page,
    write_report,
)
from weakly.report.scores import PROTOCOL_EXPLANATIONS
from weakly.vocabulary import Category, Vocabulary

EVIL = "<script>alert(1)</script>"
VOID_TAGS = {"meta", "img", "br", "hr", "input", "link"}


def record(method="wps", supervision="box", miou=0.5, **changes):
    figures = {
        "dataset41": {"miou": miou, "macc": 0.61},
        "dataset40": {"miou": miou - 0.02, "macc": 0.6},
        "pair_binary": {"miou": 0.55, "macc": 0.97},
        "official_rowwise": {"miou": 0.83, "macc": 0.97},
    }
    base = {
        "method": method, "supervision": supervision, "data": "menagerie", "split": "val", "images": 12,
        "seconds": 75.0, "seed": 3, "resolution": "64x48", "null_images": 2, "protocols": figures,
        "per_class": [{"name": "Fish Head", "iou": miou, "acc": 0.5}, {"name": "Fish Tail", "iou": 0.25, "acc": 0.5}],
    }  # fmt: skip
    return base | changes


def gallery_row(name="image 1", panels=2, side=48, seed=0):
    rng = np.random.default_rng(seed)
    return GalleryRow(
        caption=name,
        score=0.42,
        panels=[(f"panel {i}", rng.integers(0, 256, (side, side, 3), np.uint8)) for i in range(panels)],
        legend=[("Fish Head", (200, 30, 40))],
        group="best",
    )


class Tags(HTMLParser):
    """Every tag with its attributes, and whether all tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def full_page():
    fish = Vocabulary((Category("Fish Head", "Fish"), Category("Fish Tail", "Fish")))
    return ReportPage(
        title="run-7",
        subtitle="wps on menagerie",
        facts=[("split", "val")],
        records=[record(), record("oracle", miou=0.8)],
        curves=[Curve("train/loss", [1, 2, 3], [3.0, 2.0, 1.0]), Curve("lr", [1, 2], [1e-4, 2e-4])],
        gallery=[gallery_row()],
        problems=[ProblemLine("skipped-image", "error", "a.jpg", "is truncated")],
        repeat=Repeat(["weakly fit r.yaml"], "method: wps\n", [("torch", "2.15")], [("recipe.yaml", "ab" * 32)], 3),
        vocabulary=fish,
    )


def test_every_protocol_of_the_evaluation_is_explained():
    assert set(PROTOCOL_EXPLANATIONS) == {*PROTOCOLS, *SEMANTIC_PROTOCOLS}


def test_the_page_shows_every_part_it_was_given():
    text = render_page(full_page())
    for expected in (
        "run-7", "wps · box", "oracle · box", "menagerie val · 12 images", "64x48 px", "1 min 15 s", "train/loss",
        "image 1", "skipped-image", "is truncated", "weakly fit r.yaml", "method: wps", "ab" * 32, "torch",
    ):  # fmt: skip
        assert expected in text
    for protocol in PROTOCOLS:
        assert protocol in text
        assert text.count(escape(PROTOCOL_EXPLANATIONS[protocol])) == 2  # on hover, and written out below the table
    assert PROTOCOL_EXPLANATIONS["semantic"] not in text  # which nothing on this page was scored by


def test_the_headline_names_protocol_split_and_images_and_the_share_of_the_upper_bound():
    text = render_page(full_page())
    card = text[text.index('class="headline"') : text.index("<table")]
    assert "dataset41 mIoU" in card
    assert "50.0" in card
    assert "wps · box on menagerie val · 12 images" in card
    assert "oracle · box: 80.0 %" in card
    assert "62.5 %" in card  # 0.5 / 0.8


def test_tags_are_balanced_and_nothing_is_loaded_from_outside():
    text = render_page(full_page())
    tags = Tags(text)
    assert tags.open == []
    links = [attrs[key] for _, attrs in tags.found for key in ("src", "href", "srcset", "action") if key in attrs]
    assert links
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in links)
    assert not any(tag in {"link", "iframe", "object", "embed"} for tag, _ in tags.found)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "default-src 'none'" in text


@pytest.mark.parametrize("page", [
    ReportPage(EVIL, EVIL, [(EVIL, EVIL)]),
    ReportPage("r", records=[record(EVIL, EVIL, data=EVIL, published={EVIL: EVIL}, segmenter=EVIL)]),
    ReportPage("r", records=[record(protocols={EVIL: {"miou": 0.1, "macc": 0.1}})]),
    ReportPage("r", records=[record(per_class=[{"name": EVIL, "object": EVIL, "iou": 0.3}])]),
    ReportPage("r", curves=[Curve(f"train/{EVIL}", [1, 2], [1.0, 2.0])]),
    ReportPage("r", gallery=[GalleryRow(EVIL, 0.1, [(EVIL, np.zeros((4, 4, 3), np.uint8))], [(EVIL, (0, 0, 0))])]),
    ReportPage("r", problems=[ProblemLine(EVIL, "error", EVIL, EVIL)]),
    ReportPage("r", repeat=Repeat([EVIL], EVIL, [(EVIL, EVIL)], [(EVIL, EVIL)])),
])  # fmt: skip
def test_text_never_becomes_markup(page):
    text = render_page(page)
    assert "<script>alert" not in text
    assert "&lt;script&gt;" in text
    assert sum(tag == "script" for tag, _ in Tags(text).found) == 1  # the page's own


@settings(max_examples=40, deadline=None)
@given(name=st.text(min_size=1, max_size=40))
def test_any_category_name_gives_a_well_formed_page(name):
    page = ReportPage(name, records=[record(per_class=[{"name": name, "iou": 0.5}])])
    assert Tags(render_page(page)).open == []


def test_an_empty_run_still_gives_a_page_that_names_the_protocols(tmp_path):
    path = write_report(ReportPage("new-run"), tmp_path / "deep" / "report.html")
    text = path.read_text(encoding="utf-8")
    assert "Nothing has been evaluated yet" in text
    assert all(protocol in text for protocol in PROTOCOLS)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_nan_and_missing_figures_are_dashes():
    nan = math.nan
    broken = record(miou=nan, seconds=nan, protocols={"dataset41": {"miou": nan}, "dataset40": None})
    broken["per_class"] = [{"name": "Fish Head", "iou": nan}, {"name": "Fish Tail", "iou": None}]
    page = ReportPage(
        "r",
        records=[broken],
        curves=[Curve("train/loss", [1, 2, 3, 4], [nan, 2.0, nan, 1.0]), Curve("val/x", [1], [nan])],
        gallery=[GalleryRow("no truth", None, [])],
    )
    text = render_page(page)
    assert "nan" not in text.lower().replace("tabindex", "")
    assert "–" in text
    assert "No finite value was logged" in text


def test_figures_outside_protocols_get_columns_of_their_own():
    text = render_page(ReportPage("r", records=[{"method": "weaksam", "data": "voc", "split": "test", "ap50": 0.567}]))
    assert "ap50" in text
    assert "56.7" in text
    assert '<th class="protocol"' in text
    assert 'title="One confusion' not in text  # no part maps, no part-map protocols


def test_semantic_records_have_their_own_columns_and_the_final_one_is_the_headline():
    figures = {"semantic": {"miou": 0.61, "macc": 0.7}, "dataset41": {"miou": 0.52, "macc": 0.7}}
    final = {**record(method="fma", supervision="tags", row="final", protocols=figures), "miou": 0.61}
    low = {name: {"miou": 0.33, "macc": 0.4} for name in figures}
    seeds = {**final, "row": "seeds", "protocols": low, "miou": 0.33}
    text = render_page(ReportPage("r", records=[final, seeds]))
    card = text[text.index('class="headline"') : text.index("<table")]
    assert card.count("mIoU") == 1 and "semantic mIoU" in card and "61.0" in card and "33.0" not in card
    table = text[text.index("<table") : text.index("</table>")]
    assert table.count('class="protocol"') == 2 and "pair_binary" not in table
    assert table.count("61.0") == 1, "the flat mIoU is that of the headline protocol"
    mixed = render_page(ReportPage("r", records=[final, record()]))
    assert mixed[mixed.index("<table") : mixed.index("</table>")].count('class="protocol"') == 5


def test_the_gallery_and_the_problem_list_are_bounded():
    rows = [gallery_row(f"image {i}", panels=1, side=8) for i in range(MOST_GALLERY_ROWS + 6)]
    problems = [ProblemLine("bad-box", "warning", f"annotations[{i}]", "is empty") for i in range(1000)]
    text = render_page(ReportPage("r", gallery=rows, problems=problems))
    assert text.count("<article") == MOST_GALLERY_ROWS
    assert "annotations[49]" in text
    assert "annotations[50]" not in text
    assert "and 950 more of this kind" in text


def test_the_size_of_a_full_gallery_of_large_images_is_bounded():
    smooth = np.linspace(0, 255, 1500 * 2000 * 3).reshape(1500, 2000, 3).astype(np.uint8)
    rows = [GalleryRow(f"image {i}", 0.5, [(str(k), smooth) for k in range(6)]) for i in range(MOST_GALLERY_ROWS)]
    assert len(render_page(ReportPage("r", gallery=rows[:4]))) * MOST_GALLERY_ROWS / 4 < 8_000_000


def test_writing_twice_gives_the_same_bytes(tmp_path):
    first = write_report(full_page(), tmp_path / "a.html").read_bytes()
    assert write_report(full_page(), tmp_path / "b.html").read_bytes() == first
