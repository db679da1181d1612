"""Proposals from points and a grid: spec weaksam, sections 2.3, 10 and 11 (items 8 and 9)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_segmenter import tiny_segmenter
from torchvision.ops import nms as torchvision_nms

from weakly.errors import UserError
from weakly.foundation.mask_boxes import point_grid
from weakly.foundation.promptable import Frame, PromptableSegmenter
from weakly.foundation.sam import SamSegmenter
from weakly.methods.weaksam.proposal_settings import GridSettings, LoadSettings, ProposalSettings
from weakly.methods.weaksam.proposals import (
    COARSE,
    CROSS,
    FINE,
    GRID,
    PointPrompts,
    Proposals,
    borders_touched,
    box_votes,
    generate_proposals,
    load_proposals,
    mask_boxes,
    mask_extents,
    point_prompts,
    score_free_nms,
)


class Discs(PromptableSegmenter):
    """Answers a prompt with three discs around the mean of its points, of radius 2, 6 and 12 in the order given.

    Its tokens are the points themselves, so what a prompt asked can be read off the masks. It counts its calls.
    """

    def __init__(self, radii: tuple[float, ...] = (2, 6, 12)) -> None:
        super().__init__()
        self.name, self.side, self.pad = "discs", 64, "sam"
        self.embedding_shape, self.token_width = (1, 16, 16), 3
        self.radii = radii
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.encoded, self.batches = 0, []
        self.freeze()

    @property
    def fingerprint(self) -> str:
        return "discs"

    def encode(self, pixels):
        self.encoded += len(pixels)
        return torch.zeros(len(pixels), *self.embedding_shape)

    def box_tokens(self, boxes):
        raise AssertionError("no boxes are asked for")

    def point_tokens(self, points, boxes=None):
        assert boxes is None
        tokens = torch.zeros(len(points), 2, 3)
        tokens[:, 0, :2], tokens[:, 0, 2] = points, 1
        return tokens

    def decode(self, embeddings, tokens, image_index, *, multimask=False):
        assert multimask and (image_index == 0).all() and len(embeddings) == 1
        self.batches.append(tuple(tokens.shape[:2]))
        centre = tokens[..., :2].sum(1) / tokens[..., 2].sum(1, keepdim=True)
        y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
        distance = ((x - centre[:, None, None, 0:1]) ** 2 + (y - centre[:, None, None, 1:2]) ** 2).sqrt()
        radii = torch.tensor(self.radii)[:, None, None]
        distance = distance.reshape(len(tokens), 1, 64, 64)
        return radii - distance, (torch.tensor(self.radii) / 20).expand(len(tokens), -1)


def rows(*points: tuple[float, float, int]) -> np.ndarray:
    """(n, 5) points from x, y, class."""
    return np.array([(x, y, label, 1, 0) for x, y, label in points], np.float32).reshape(-1, 5)


def picture(height: int = 64, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8)


NO_GRID = ProposalSettings(grid=GridSettings(side=0))
POINTS = PointPrompts(
    coarse=rows((20, 20, 3), (40, 24, 3), (30, 44, 1)), fine=rows((24, 40, 1)), cross=rows((32, 32, 0), (33, 32, 0))
)


def test_a_point_gives_the_two_larger_discs_around_it():
    found = generate_proposals(
        Discs(), picture(), PointPrompts(fine=rows((20, 30, 0))), replace(NO_GRID, class_joint=())
    )
    np.testing.assert_array_equal(found.boxes, [(14, 24, 26, 36), (8, 18, 32, 42)])
    np.testing.assert_array_equal(found.source, [FINE, FINE])


def test_the_points_of_a_class_are_one_prompt_too():
    found = generate_proposals(Discs(), picture(), PointPrompts(coarse=POINTS.coarse), NO_GRID)
    centres = [
        (20, 20),
        (40, 24),
        (30, 44),
        (30, 44),
        (30, 22),
    ]  # class 1 (one point) before class 3, whose mean is last
    boxes = [(x - r, y - r, x + r, y + r) for x, y in centres for r in (6, 12)]
    np.testing.assert_array_equal(found.boxes, boxes)


def test_the_count_is_that_of_the_spec():
    """n_grid + 2 (p_coarse + n_cls) + 2 (p_fine + n_cls) + what NMS leaves of 2 p_cross."""
    found = generate_proposals(Discs(), picture(), POINTS, ProposalSettings(grid=GridSettings(side=2)))
    counts = found.counts()
    assert counts["coarse"] == 2 * (3 + 2)
    assert counts["fine"] == 2 * (1 + 1)
    assert counts["cross"] == 3, "a pixel apart, the IoU of two boxes of 24 pixels is 23 / 25, of 12 pixels 11 / 13"
    assert counts["grid"] > 0
    assert (np.diff(found.source.astype(int)) >= 0).all(), "grid, coarse, fine, cross"
    fewer = generate_proposals(Discs(), picture(), POINTS, ProposalSettings(cross_nms=0.84, grid=GridSettings(side=2)))
    assert fewer.counts()["cross"] == 2


def test_the_image_is_encoded_once_and_points_are_decoded_in_batches():
    segmenter = Discs()
    generate_proposals(segmenter, picture(), POINTS, ProposalSettings(grid=GridSettings(side=4), prompts_per_batch=6))
    assert segmenter.encoded == 1
    assert segmenter.batches == [(6, 2), (6, 2), (4, 2), (6, 2), (2, 2), (1, 3)], "grid; single points; two together"


@pytest.mark.parametrize("order", [(2, 6, 12), (12, 2, 6), (6, 12, 2)])
def test_levels_by_area_do_not_depend_on_the_order_of_outputs(order):
    settings = replace(NO_GRID, level_of="area")
    wanted = generate_proposals(Discs(), picture(), POINTS, settings).boxes
    np.testing.assert_array_equal(generate_proposals(Discs(order), picture(), POINTS, settings).boxes, wanted)
    as_output = generate_proposals(Discs(order), picture(), POINTS, NO_GRID).boxes
    assert (len(as_output) == len(wanted) and (as_output == wanted).all()) == (order == (2, 6, 12))


def test_masks_that_are_empty_propose_nothing():
    found = generate_proposals(Discs((-1, 6, -1)), picture(), POINTS, NO_GRID)
    assert found.counts() == {"grid": 0, "coarse": 5, "fine": 2, "cross": 2}
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()


def test_without_points_and_grid_there_are_no_proposals():
    found = generate_proposals(Discs(), picture(), PointPrompts(), NO_GRID)
    assert found.boxes.shape == (0, 4)
    assert found.counts() == {"grid": 0, "coarse": 0, "fine": 0, "cross": 0}


def test_a_grid_keeps_all_levels_that_pass_its_tests():
    """Predicted IoU is radius / 20; the stability of a disc is ((r - 1) / (r + 1))^2, 0.11 for the smallest."""
    some = GridSettings(side=2, pred_iou=0.05, stability=0.2, nms=1)
    found = generate_proposals(Discs(), picture(), PointPrompts(), ProposalSettings(grid=some))
    assert np.unique(found.boxes[:, 2] - found.boxes[:, 0]).tolist() == [12, 24]
    every = replace(some, stability=0)
    found = generate_proposals(Discs(), picture(), PointPrompts(), ProposalSettings(grid=every))
    assert len(found) == 12
    fewer = replace(some, pred_iou=0.3)
    found = generate_proposals(Discs(), picture(), PointPrompts(), ProposalSettings(grid=fewer))
    assert np.unique(found.boxes[:, 2] - found.boxes[:, 0]).tolist() == [24], (
        "a predicted IoU of 0.3 does not exceed it"
    )


def test_the_grid_suppresses_by_predicted_iou():
    grid = GridSettings(side=2, pred_iou=0, stability=0, nms=0.2)
    found = generate_proposals(Discs(), picture(), PointPrompts(), ProposalSettings(grid=grid))
    widths = (found.boxes[:, 2] - found.boxes[:, 0]).tolist()
    assert widths == [24] * 4 + [4] * 4, "144 / 576 exceeds 0.2, 16 / 576 does not"


def test_the_votes_of_a_box_are_the_overlaps_that_agree():
    """IoU of the first two 8 / 12, of the second and third 6 / 14, of the others nothing."""
    boxes = np.array([(0, 0, 10, 1), (2, 0, 12, 1), (6, 0, 16, 1), (50, 50, 60, 60)], np.float32)
    assert box_votes(boxes, 0.5).tolist() == pytest.approx([1 + 8 / 12, 1 + 8 / 12, 1, 1])
    assert box_votes(boxes, 0.25).tolist() == pytest.approx(
        [1 + 8 / 12 + 4 / 16, 1 + 8 / 12 + 6 / 14, 1.25 + 6 / 14, 1]
    )
    assert box_votes(boxes[:0], 0.5).shape == (0,)


def test_many_votes_are_counted_in_parts(monkeypatch):
    corners = np.random.default_rng(0).uniform(0, 50, (40, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + 20], 1)
    whole = box_votes(boxes, 0.4)
    monkeypatch.setattr("weakly.methods.weaksam.proposals.VOTERS", 7)
    np.testing.assert_allclose(box_votes(boxes, 0.4), whole, rtol=1e-6)


def test_the_grid_may_rank_by_votes_and_keep_the_first():
    """Large discs overlap with their neighbours and with the middle ones inside them: those amid the image most."""
    grid = GridSettings(side=4, pred_iou=0, stability=0, nms=1, rank="votes", vote_iou=0.15)
    votes = generate_proposals(Discs(), picture(), PointPrompts(), ProposalSettings(grid=grid))
    by_iou = generate_proposals(Discs(), picture(), PointPrompts(), ProposalSettings(grid=replace(grid, rank="iou")))
    assert len(votes) == len(by_iou) == 48
    assert {tuple(box) for box in votes.boxes} == {tuple(box) for box in by_iou.boxes}
    counted = box_votes(votes.boxes, 0.15)
    assert (np.diff(counted) <= 1e-6).all(), "descending"
    assert not np.array_equal(votes.boxes, by_iou.boxes)
    first = generate_proposals(Discs(), picture(), PointPrompts(), ProposalSettings(grid=replace(grid, most=5)))
    np.testing.assert_array_equal(first.boxes, votes.boxes[:5])


def test_borders_of_an_image():
    boxes = np.array([(0, 0, 30, 20), (1, 2, 28, 18), (5, 5, 29, 10), (5, 5, 9, 9)], np.float32)
    assert borders_touched(boxes, (20, 30)).tolist() == [4, 1, 1, 0]
    assert borders_touched(boxes[:0], (20, 30)).shape == (0,)


def test_votes_count_less_at_the_border_of_the_image():
    grid = GridSettings(side=4, pred_iou=0, stability=0, nms=1, rank="votes", vote_iou=0.15)
    wary = replace(grid, border=50.0)
    found = generate_proposals(Discs(), picture(), PointPrompts(), ProposalSettings(grid=wary))
    touched = borders_touched(found.boxes, picture().shape[:2])
    assert 0 < (touched > 0).sum() < len(touched)
    assert (np.diff(touched > 0) >= 0).all(), "those inside come first"


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory) -> SamSegmenter:
    return tiny_segmenter(tmp_path_factory.mktemp("sam"))


def test_one_prompt_of_many_points_is_sams(segmenter, monkeypatch):
    """The tokens that are decoded are those of SAM's prompt encoder for all points of a class at once."""
    seen = []
    decode = segmenter.decode_wanted
    monkeypatch.setattr(segmenter, "decode_wanted", lambda e, t, wanted: seen.append(t) or decode(e, t, wanted))
    image = picture(40, 64)
    generate_proposals(segmenter, image, PointPrompts(coarse=POINTS.coarse), NO_GRID)
    frame = segmenter.frame((40, 64))
    points = torch.from_numpy(frame.points_to_frame(POINTS.coarse[:2, :2])).float()[None, None]
    expected, _ = segmenter.model.prompt_encoder(points, torch.ones(1, 1, 2), None, None)
    assert [tuple(tokens.shape[:2]) for tokens in seen if len(tokens)] == [(4, 2), (1, 3)]
    torch.testing.assert_close(seen[-1], expected[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_batches_give_the_masks_of_single_prompts(segmenter):
    image = picture(50, 90)
    frame = segmenter.frame((50, 90))
    embedding = segmenter.encode(segmenter.preprocess([image]))
    xy = torch.from_numpy(frame.points_to_frame(point_grid(5) * (90, 50))).float()
    tokens = segmenter.point_tokens(xy)
    together, _ = segmenter.decode(embedding, tokens, torch.zeros(25, dtype=torch.int64), multimask=True)
    zero = torch.zeros(1, dtype=torch.int64)
    alone = torch.cat([segmenter.decode(embedding, token[None], zero, multimask=True)[0] for token in tokens])
    masks = [frame.logits_to_image(logits.flatten(0, 1)) > 0 for logits in (together, alone)]
    assert (masks[0] == masks[1]).double().mean() >= 0.999999
    assert 0.01 < masks[0].double().mean() < 0.99


def test_batch_size_and_chunks_do_not_change_the_proposals(segmenter, monkeypatch):
    image = picture(50, 90)
    settings = ProposalSettings(grid=GridSettings(side=4, pred_iou=0, stability=0))
    wanted = generate_proposals(segmenter, image, POINTS, settings)
    assert min(wanted.counts().values()) > 0
    monkeypatch.setattr("weakly.methods.weaksam.proposals.MASK_PIXELS", 1)
    found = generate_proposals(segmenter, image, POINTS, replace(settings, prompts_per_batch=1))
    np.testing.assert_array_equal(found.boxes, wanted.boxes)
    np.testing.assert_array_equal(found.source, wanted.source)


def test_boxes_of_masks():
    """Of one pixel (x, y): x, y, x + 1, y + 1, which is x, y, x, y with inclusive bounds; of none: zeros."""
    masks = torch.zeros(4, 6, 9, dtype=torch.bool)
    masks[0, 4, 7] = True
    masks[2] = True
    masks[3, 1, 2] = masks[3, 3, 5] = True
    np.testing.assert_array_equal(mask_boxes(masks), [(7, 4, 8, 5), (0, 0, 0, 0), (0, 0, 9, 6), (2, 1, 6, 4)])
    assert mask_boxes(masks[:0]).shape == (0, 4)


def test_extents_are_those_of_upscaled_masks():
    frame = Frame.fit((30, 60), 64)
    logits = torch.full((2, 32, 32), -9.0)
    logits[0, 4:10, 8:20] = 9
    extents = mask_extents(frame, logits)
    masks = frame.logits_to_image(logits) > 0
    assert extents.areas.tolist() == masks.sum((1, 2)).tolist()
    ys, xs = np.nonzero(masks[0].numpy())
    assert extents.boxes[0].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert extents.boxes[1].tolist() == [0, 0, 0, 0]
    assert 0.5 < extents.stability[0] < 1
    assert extents.stability[1] == 0


def inclusive_iou(a, b) -> float:
    """IoU that counts the last pixel of boxes with inclusive bounds."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    shared = max(width, 0) * max(height, 0)
    areas = [(each[2] - each[0] + 1) * (each[3] - each[1] + 1) for each in (a, b)]
    return shared / (sum(areas) - shared)


box = st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(0, 12)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@settings(max_examples=60, deadline=None)
@given(inclusive=st.lists(box, min_size=1, max_size=12), threshold=st.sampled_from([0.3, 0.5, 0.9]))
def test_score_free_nms(inclusive, threshold):
    overlaps = [inclusive_iou(a, b) for i, a in enumerate(inclusive) for b in inclusive[:i]]
    assume(all(abs(iou - threshold) > 1e-6 for iou in overlaps))  # float32 decides a tie either way
    exclusive = np.array(inclusive, np.float32) + (0, 0, 1, 1)
    kept = score_free_nms(exclusive, threshold).tolist()
    assert kept[0] == 0 and kept == sorted(kept)
    pairs = [(i, j) for i in kept for j in kept if i < j]
    assert all(inclusive_iou(inclusive[i], inclusive[j]) <= threshold for i, j in pairs)
    scores = torch.arange(len(inclusive), 0, -1).float()
    assert kept == torchvision_nms(torch.from_numpy(exclusive).float(), scores, threshold).tolist()


def test_score_free_nms_of_nothing():
    assert score_free_nms(np.zeros((0, 4), np.float32), 0.9).shape == (0,)


def test_detectors_see_no_duplicates_and_no_small_boxes():
    boxes = [(-3, 0, 30, 30), (5, 5, 25, 25), (5, 5, 25, 25), (5, 5, 24, 30), (80, 80, 120, 120), (70, 70, 200, 200)]
    proposals = Proposals(np.array(boxes, np.float32), np.array([0, 1, 3, 2, 3, 3], np.uint8))
    found = load_proposals(proposals, (100, 100))
    np.testing.assert_array_equal(found.boxes, [(0, 0, 30, 30), (5, 5, 25, 25), (80, 80, 100, 100), (70, 70, 100, 100)])
    np.testing.assert_array_equal(found.source, [GRID, COARSE, CROSS, CROSS])
    as_is = load_proposals(proposals, (100, 100), LoadSettings(dedup=False, clip=False, min_side=0))
    np.testing.assert_array_equal(as_is.boxes, proposals.boxes)
    assert len(load_proposals(Proposals(np.zeros((0, 4)), np.zeros(0)), (100, 100))) == 0


def test_prompts_of_all_sources():
    prompts = point_prompts(POINTS, ["fine"])
    assert [prompt.rows for prompt in prompts] == [(0,), (1,), (2,), (3,), (3,), (4,), (5,)]
    assert [prompt.source for prompt in prompts] == [COARSE] * 3 + [FINE] * 2 + [CROSS] * 2


def test_the_digest_of_points_tells_what_decides_the_proposals():
    moved = POINTS.coarse.copy()
    moved[0, 0] += 1
    assert PointPrompts(moved, POINTS.fine, POINTS.cross).digest != POINTS.digest
    assert PointPrompts(POINTS.fine, POINTS.coarse, POINTS.cross).digest != POINTS.digest
    scored = POINTS.coarse.copy()
    scored[:, 3:] = 0.5
    assert PointPrompts(scored, POINTS.fine, POINTS.cross).digest == POINTS.digest


@pytest.mark.parametrize(
    ("cls", "wrong", "named"),
    [
        (ProposalSettings, {"keep_masks": (1, 1)}, "keep_masks"),
        (ProposalSettings, {"keep_masks": (3,)}, "keep_masks"),
        (ProposalSettings, {"keep_masks": ()}, "keep_masks"),
        (ProposalSettings, {"class_joint": ("cross",)}, "class_joint"),
        (ProposalSettings, {"level_of": "size"}, "level_of"),
        (ProposalSettings, {"cross_nms": 1.5}, "cross_nms"),
        (ProposalSettings, {"prompts_per_batch": 0}, "prompts_per_batch"),
        (GridSettings, {"side": -1}, "grid.side"),
        (GridSettings, {"nms": math.nan}, "grid.nms"),
        (GridSettings, {"rank": "size"}, "grid.rank"),
        (GridSettings, {"vote_iou": 2.0}, "grid.vote_iou"),
        (GridSettings, {"border": -1.0}, "grid.border"),
        (GridSettings, {"most": 0}, "grid.most"),
        (LoadSettings, {"min_side": -1}, "min_side"),
    ],
)
def test_wrong_settings_are_named(cls, wrong, named):
    with pytest.raises(UserError, match=named):
        cls(**wrong)


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8)]
)
def test_only_rgb_images_have_proposals(image):
    with pytest.raises(UserError, match="RGB"):
        generate_proposals(Discs(), image, POINTS)
