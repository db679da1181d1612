"""Automatic masks, SAM's whole procedure, on segmenters whose answers are known.

`RegionSegmenter` reads regions off the colours it is shown: pixels with the red of the prompted one are the whole,
those with its green too the part, those with all its colour the sub-part. What it should find is therefore known.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from weakly.data.menagerie.scene import render_scene
from weakly.errors import UserError
from weakly.foundation.automatic_masks import PART, SUB_PART, WHOLE, AutomaticMasks, generate_masks, stability
from weakly.foundation.mask_boxes import clean_regions, nms
from weakly.foundation.mask_settings import MASK_PRESETS, AutomaticMaskSettings
from weakly.foundation.promptable import PIXEL_MEAN, PIXEL_STD, Pad, PromptableSegmenter
from weakly.foundation.sam import load_segmenter
from weakly.segmentation import encode_masks

torch.set_num_threads(1)

PLAIN = AutomaticMaskSettings(points_per_side=8, crop_layers=0, min_region=0, edge_margin=2)


class RegionSegmenter(PromptableSegmenter):
    """Segments by colour at 64 x 64; black is nothing. ``iou`` is what it predicts of sub-part, part and whole."""

    def __init__(
        self,
        iou: tuple[float, float, float] = (0.9, 0.9, 0.9),
        sharpness: float = 40,
        pad: Pad = "sam",
        outputs: tuple[int, int, int] = (SUB_PART, PART, WHOLE),
    ) -> None:
        super().__init__()
        self.name, self.side, self.pad = "regions", 64, pad
        self.embedding_shape, self.token_width = (48, 16, 16), 2
        self.iou = nn.Parameter(torch.tensor(iou))
        self.sharpness, self.outputs = sharpness, list(outputs)
        self.encoded: list[int] = []
        self.freeze()

    @property
    def fingerprint(self) -> str:
        return "0" * 64

    def encode(self, pixels: Tensor) -> Tensor:
        self.encoded.append(len(pixels))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
        return functional.pixel_unshuffle(pixels * std + mean, 4)

    def box_tokens(self, boxes: Tensor) -> Tensor:
        return boxes.view(-1, 2, 2)

    def point_tokens(self, points: Tensor, boxes: Tensor | None = None) -> Tensor:
        return torch.stack([points, torch.zeros_like(points)], 1)

    def decode(
        self, embeddings: Tensor, tokens: Tensor, image_index: Tensor, *, multimask: bool = False
    ) -> tuple[Tensor, Tensor]:
        pictures = functional.pixel_shuffle(embeddings, 4)[image_index]
        x, y = tokens[:, 0].long().unbind(1)
        colour = pictures[torch.arange(len(tokens)), :, y, x]
        difference = (pictures - colour[:, :, None, None]).abs()
        distance = torch.stack([difference[:, : 3 - level].amax(1) for level in self.outputs], 1)
        predicted = self.iou[self.outputs] * (colour[:, :1] > 0.1)
        return self.sharpness * (0.19 - distance), predicted


def picture(size: tuple[int, int], *regions: tuple[slice, slice, tuple[int, int, int]]) -> np.ndarray:
    image = np.zeros((*size, 3), np.uint8)
    for rows, columns, colour in regions:
        image[rows, columns] = colour
    return image


def nested() -> np.ndarray:
    """A whole of 48 x 48 with two parts of two sub-parts each."""
    return picture(
        (64, 64),
        (slice(8, 32), slice(8, 32), (200, 100, 50)),
        (slice(32, 56), slice(8, 32), (200, 100, 150)),
        (slice(8, 32), slice(32, 56), (200, 200, 50)),
        (slice(32, 56), slice(32, 56), (200, 200, 150)),
    )


def found(masks: AutomaticMasks) -> set[tuple[int, tuple[int, ...]]]:
    return {(int(level), tuple(int(v) for v in box)) for level, box in zip(masks.levels, masks.boxes, strict=True)}


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def no_masks(size: tuple[int, int]) -> AutomaticMasks:
    return AutomaticMasks.from_rles(size, [], [], [], [])


class TestStability:
    def test_is_the_iou_of_a_strict_and_a_lax_mask(self):
        logits = torch.tensor([[[2.0, 0.5, -0.5, -2.0]], [[-2.0, -3.0, -1.0, -4.0]], [[5.0, 5.0, -5.0, -5.0]]])
        torch.testing.assert_close(stability(logits, 1.0), torch.tensor([1 / 3, 0.0, 1.0]))
        torch.testing.assert_close(stability(logits[:1], 0.25), torch.tensor([1.0]))


class TestGenerateMasks:
    def test_finds_the_whole_its_parts_and_their_sub_parts(self):
        masks = generate_masks(RegionSegmenter(), nested(), PLAIN)
        assert found(masks) == {
            (WHOLE, (8, 8, 56, 56)),
            (PART, (8, 8, 32, 56)),
            (PART, (32, 8, 56, 56)),
            (SUB_PART, (8, 8, 32, 32)),
            (SUB_PART, (8, 32, 32, 56)),
            (SUB_PART, (32, 8, 56, 32)),
            (SUB_PART, (32, 32, 56, 56)),
        }
        truth = np.zeros((64, 64), bool)
        truth[8:56, 8:56] = True
        np.testing.assert_array_equal(masks.masks()[masks.levels == WHOLE], truth[None])
        np.testing.assert_array_equal(masks.areas, masks.masks().sum((1, 2)))
        np.testing.assert_allclose(masks.predicted_iou, 0.9)
        np.testing.assert_array_equal(masks.stability, 1)

    def test_a_whole_needs_less_predicted_iou(self):
        shy = RegionSegmenter((0.8, 0.8, 0.8))
        assert found(generate_masks(shy, nested(), PLAIN)) == {(WHOLE, (8, 8, 56, 56))}
        assert len(generate_masks(shy, nested(), replace(PLAIN, whole_iou_offset=0))) == 0

    def test_predicted_iou_must_exceed_the_threshold(self):
        exact = RegionSegmenter((0.875, 0.875, 0.875))
        strict = replace(PLAIN, iou_threshold=0.875, whole_iou_offset=0)
        assert len(generate_masks(exact, nested(), strict)) == 0
        assert len(generate_masks(exact, nested(), replace(strict, iou_threshold=0.87))) == 7

    @pytest.mark.parametrize("where", ["crop", "decoder"])
    def test_unstable_masks_go(self, where):
        unsure = RegionSegmenter(sharpness=4)  # logits of 0.76 inside
        chosen = replace(PLAIN, stability_at=where)
        assert len(generate_masks(unsure, nested(), chosen)) == 0
        assert len(generate_masks(unsure, nested(), replace(chosen, stability_offset=0.5))) == 7

    def test_stability_before_and_after_upscaling_agree_at_the_same_resolution(self):
        a, b = (
            generate_masks(RegionSegmenter(), nested(), replace(PLAIN, stability_at=at)) for at in ("crop", "decoder")
        )
        assert a.to_dict() == b.to_dict()

    def test_padding_does_not_count_as_unstable(self):
        image = nested()[:48]  # 16 rows of padding, grey after SAM's padding
        for pad in ("sam", "center_black"):
            for where in ("crop", "decoder"):
                masks = generate_masks(RegionSegmenter(pad=pad), image, replace(PLAIN, stability_at=where))
                assert (WHOLE, (8, 8, 56, 48)) in found(masks)
                assert masks.size == (48, 64)

    def test_outputs_without_an_order_are_ranked_by_area(self):
        shuffled = RegionSegmenter(outputs=(PART, WHOLE, SUB_PART))
        ranked = generate_masks(shuffled, nested(), replace(PLAIN, level_of="area"))
        assert found(ranked) == found(generate_masks(RegionSegmenter(), nested(), PLAIN))
        assert found(generate_masks(shuffled, nested(), PLAIN)) != found(ranked)

    def test_where_areas_decide_any_output_may_be_the_whole_that_needs_less(self):
        shy = RegionSegmenter((0.8, 0.8, 0.8), outputs=(WHOLE, SUB_PART, PART))
        ranked = replace(PLAIN, level_of="area")
        assert found(generate_masks(shy, nested(), ranked)) == {(WHOLE, (8, 8, 56, 56))}
        assert len(generate_masks(shy, nested(), replace(ranked, whole_iou_offset=0))) == 0

    @pytest.mark.parametrize(("level_of", "made"), [("output", 36), ("area", 3 * 36)])
    def test_only_masks_that_may_pass_are_made(self, level_of, made, monkeypatch):
        counts = []
        plain = PromptableSegmenter.decode_wanted

        def counting(*call):
            answer = plain(*call)
            counts.append(len(answer[0]))
            return answer

        monkeypatch.setattr(PromptableSegmenter, "decode_wanted", counting)
        generate_masks(RegionSegmenter((0.8, 0.8, 0.8)), nested(), replace(PLAIN, level_of=level_of))
        assert counts == [made]  # 6 x 6 of the 8 x 8 points are not on black, where predicted IoU is zero

    def test_batch_sizes_change_nothing(self):
        image = np.kron(nested(), np.ones((2, 2, 1), np.uint8))
        layered = replace(PLAIN, crop_layers=1)
        one = generate_masks(RegionSegmenter(), image, replace(layered, prompts_per_batch=1, crops_per_batch=1))
        many = generate_masks(RegionSegmenter(), image, replace(layered, prompts_per_batch=1000))
        assert len(one) > 0
        assert one.to_dict() == many.to_dict()

    def test_upscaling_in_small_chunks_changes_nothing(self, monkeypatch):
        expected = generate_masks(RegionSegmenter(), nested(), PLAIN).to_dict()
        monkeypatch.setattr("weakly.foundation.automatic_masks.MASK_PIXELS", 2 * 64 * 64)
        for where in ("crop", "decoder"):
            masks = generate_masks(RegionSegmenter(), nested(), replace(PLAIN, stability_at=where))
            assert masks.to_dict() == expected

    def test_every_crop_is_encoded_once(self):
        segmenter = RegionSegmenter()
        generate_masks(segmenter, nested(), replace(PLAIN, crop_layers=1, crops_per_batch=2))
        assert segmenter.encoded == [2, 2, 1]

    def test_an_image_of_nothing_gives_no_masks(self):
        masks = generate_masks(RegionSegmenter(), np.zeros((30, 50, 3), np.uint8), AutomaticMaskSettings())
        assert len(masks) == 0
        assert masks.masks().shape == (0, 30, 50)

    @pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)])
    def test_other_arrays_are_refused(self, image):
        with pytest.raises(UserError, match="give \\(H, W, 3\\) uint8"):
            generate_masks(RegionSegmenter(), image, PLAIN)


class TestWholesFirst:
    """A part that is nearly the whole: their boxes overlap with an IoU of 0.83, so that one of them goes."""

    NEARLY = picture(
        (64, 64),
        (slice(8, 56), slice(8, 48), (200, 100, 50)),
        (slice(8, 56), slice(48, 56), (200, 200, 50)),
    )

    def test_the_whole_survives_a_better_part(self):
        masks = generate_masks(RegionSegmenter((0.99, 0.95, 0.9)), self.NEARLY, PLAIN)
        assert (WHOLE, (8, 8, 56, 56)) in found(masks)
        assert not any(box == (8, 8, 48, 56) for _, box in found(masks))

    def test_without_the_offset_the_best_predicted_iou_survives(self):
        masks = generate_masks(RegionSegmenter((0.99, 0.95, 0.9)), self.NEARLY, replace(PLAIN, whole_nms_offset=0))
        assert (SUB_PART, (8, 8, 48, 56)) in found(masks)
        assert WHOLE not in masks.levels

    def test_after_the_clean_up_the_published_order_forgets_the_level(self):
        """An island makes the whole's box larger until it is cleaned away; then it coincides with its part's."""
        image = picture(
            (64, 64),
            (slice(8, 40), slice(8, 38), (200, 100, 50)),
            (slice(8, 40), slice(38, 40), (200, 200, 50)),
            (slice(59, 62), slice(59, 62), (200, 200, 200)),
        )
        cleaning = replace(PLAIN, min_region=20)
        published = generate_masks(RegionSegmenter(), image, cleaning)
        assert [8, 8, 38, 40] in published.boxes.tolist()
        assert WHOLE not in published.levels
        always = generate_masks(RegionSegmenter(), image, replace(cleaning, whole_first="every_pass"))
        assert [8, 8, 38, 40] not in always.boxes.tolist()
        assert (WHOLE, (8, 8, 40, 40)) in found(always)


class TestCrops:
    SETTINGS = AutomaticMaskSettings(
        points_per_side=4, point_downscale=1, edge_margin=2, min_region=0, stability_offset=0.1
    )

    def test_a_small_thing_between_the_points_of_the_image_is_found_in_a_crop(self):
        rows, columns = slice(41, 58), slice(84, 108)
        image = picture((96, 128), (rows, columns, (200, 200, 200)))
        truth = image[..., 0] > 0
        assert len(generate_masks(RegionSegmenter(), image, replace(self.SETTINGS, crop_layers=0))) == 0
        masks = generate_masks(RegionSegmenter(), image, self.SETTINGS)
        assert len(masks) == 1
        assert masks.size == (96, 128)
        assert iou(masks.masks()[0], truth) > 0.7
        np.testing.assert_allclose(masks.boxes[0], [84, 41, 108, 58], atol=1)

    def test_a_thing_larger_than_a_crop_is_not_returned_in_pieces(self):
        image = picture((96, 128), (slice(10, 86), slice(10, 118), (200, 200, 200)))
        masks = generate_masks(RegionSegmenter(), image, self.SETTINGS)
        assert len(masks) == 1
        assert iou(masks.masks()[0], image[..., 0] > 0) > 0.95

    def test_the_smaller_crop_wins(self):
        """An image of two crops' resolution: the mask of the crop is sharper than the image's."""
        rows, columns = slice(43, 71), slice(12, 41)
        image = picture((160, 160), (rows, columns, (200, 200, 200)))
        truth = image[..., 0] > 0
        coarse = generate_masks(RegionSegmenter(), image, replace(self.SETTINGS, crop_layers=0))
        fine = generate_masks(RegionSegmenter(), image, self.SETTINGS)
        assert len(coarse) == len(fine) == 1
        assert iou(fine.masks()[0], truth) > iou(coarse.masks()[0], truth)


class TestAutomaticMasks:
    def test_json_round_trip(self):
        masks = generate_masks(RegionSegmenter((0.91, 0.92, 0.93)), nested(), PLAIN)
        again = AutomaticMasks.from_dict(json.loads(json.dumps(masks.to_dict())))
        assert again.size == masks.size
        assert again.rles == masks.rles
        for name in ("boxes", "areas", "levels", "predicted_iou", "stability"):
            column, read = getattr(masks, name), getattr(again, name)
            assert read.dtype == column.dtype
            np.testing.assert_array_equal(read, column)

    def test_no_masks_round_trip(self):
        again = AutomaticMasks.from_dict(json.loads(json.dumps(no_masks((30, 50)).to_dict())))
        assert len(again) == 0
        assert again.size == (30, 50)

    @pytest.mark.parametrize(
        "damage", [{"size": [10, 10]}, {"levels": [3]}, {"counts": ["~"]}, {"levels": [0, 1]}, {"stability": []}]
    )
    def test_damaged_columns_are_refused(self, damage):
        rles = encode_masks(np.ones((1, 6, 9), bool))
        columns = AutomaticMasks.from_rles((6, 9), rles, [0], [0.9], [0.9]).to_dict()
        with pytest.raises(ValueError):
            AutomaticMasks.from_dict({**columns, **damage})

    def test_join_and_take(self):
        masks = generate_masks(RegionSegmenter(), nested(), PLAIN)
        rows = np.array([4, 0])
        joined = AutomaticMasks.join(masks.size, [masks.take(rows), no_masks(masks.size), masks])
        assert len(joined) == len(masks) + 2
        np.testing.assert_array_equal(joined.masks()[:2], masks.masks()[rows])


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("points_per_side", 0),
            ("crop_layers", 9),
            ("crop_overlap", 1.0),
            ("iou_threshold", 1.2),
            ("stability_threshold", -0.1),
            ("min_region", -1),
            ("whole_first", "never"),
            ("stability_at", "image"),
            ("level_of", "size"),
            ("prompts_per_batch", 0),
        ],
    )
    def test_wrong_values_are_named(self, name, value):
        with pytest.raises(UserError, match=f"{name} is {value!r}; give"):
            AutomaticMaskSettings(**{name: value})

    def test_presets_are_the_two_offsets_and_the_crops(self):
        offsets = {name: (s.whole_iou_offset, s.whole_nms_offset, s.crop_layers) for name, s in MASK_PRESETS.items()}
        assert offsets == {
            "official_heavy": (0, 0, 1),
            "s1": (0.1, 0, 1),
            "l2_nmsf": (0, 1, 1),
            "l2_nmsf_s1": (0.1, 1, 1),
            "l2_nmsf_s1_c0": (0.1, 1, 0),
        }
        assert MASK_PRESETS["l2_nmsf_s1"] == AutomaticMaskSettings()


UNSURE = AutomaticMaskSettings(
    points_per_side=5,
    crop_layers=0,
    iou_threshold=0.15,
    whole_iou_offset=0,
    stability_threshold=0.3,
    min_region=40,
    level_of="area",
)


@pytest.fixture(scope="module")
def scene():
    return render_scene(77, 1)


@pytest.fixture(scope="module")
def scene_masks(scene):
    return generate_masks(load_segmenter("bundled"), scene.image, UNSURE)


class TestBundled:
    """The bundled SAM is small and unsure of itself, hence the thresholds; its outputs have an order of their own."""

    def test_masks_obey_the_settings(self, scene_masks):
        decoded = scene_masks.masks()
        assert decoded.shape == (len(scene_masks), 256, 256)
        assert (scene_masks.predicted_iou > UNSURE.iou_threshold).all()
        assert (scene_masks.stability >= UNSURE.stability_threshold).all()
        assert set(scene_masks.levels.tolist()) <= {SUB_PART, PART, WHOLE}
        assert nms(scene_masks.boxes, np.ones(len(decoded)), 0.7).tolist() == list(range(len(decoded)))
        assert not any(clean_regions(mask, UNSURE.min_region)[1] for mask in decoded)

    def test_masks_are_things_of_the_scene(self, scene, scene_masks):
        parts = np.unique(scene.part_map)[1:]
        things = [scene.part_map > 0, *(scene.part_map == part for part in parts)]
        best = [max(iou(mask, thing) for mask in scene_masks.masks()) for thing in things if thing.mean() > 0.05]
        assert max(best) > 0.45
