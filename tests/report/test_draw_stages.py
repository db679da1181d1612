"""Boxes and points of a stage over an image."""

from __future__ import annotations

import numpy as np

from weakly.methods.base import NO_CATEGORY, Panel
from weakly.report.draw import OUTLINE, draw_stage, fit_panel
from weakly.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_names(["dog", "bear"])
IMAGE = np.full((40, 80, 3), 128, np.uint8)


def test_boxes_of_no_category_are_outlines_at_the_scale_of_the_picture() -> None:
    stage = Panel("proposals", "boxes", np.array([[10, 5, 60, 30, NO_CATEGORY]], np.uint16))
    drawn = draw_stage(IMAGE, stage, VOCABULARY, side=160)
    changed = (drawn != fit_panel(IMAGE, 160)).any(2)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 60, 20, 120)
    assert np.array_equal(np.unique(drawn[changed], axis=0), [OUTLINE])
    assert not changed[20:50, 30:110].any()


def test_boxes_with_categories_are_those_of_weak_labels() -> None:
    stage = Panel("pseudo truth", "boxes", np.array([[10, 5, 60, 30, 1], [0, 0, 20, 20, 0]], np.uint16))
    drawn = draw_stage(IMAGE, stage, VOCABULARY, side=160)
    colours = {tuple(colour) for colour in drawn.reshape(-1, 3).tolist()}
    assert {tuple(VOCABULARY.palette()[k].tolist()) for k in (0, 1)} <= colours
    assert OUTLINE not in colours
    assert (drawn[50, 20] == VOCABULARY.palette()[1]).all(), "the left edge of the bear"


def test_points_are_dots_in_the_colour_of_their_category() -> None:
    stage = Panel("peaks of bear", "points", np.array([[40, 20, 1]], np.uint16))
    drawn = draw_stage(IMAGE, stage, VOCABULARY, side=160)
    assert (drawn[40, 80] == VOCABULARY.palette()[1]).all()
