"""The SAM adapter: frames, teacher tokens and decoding.

Worked numbers follow WPS-SAM's released preprocessing and SAM's prompt encoder.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_sam import random_image, tiny_sam
from torch import Tensor, nn
from torch.nn import functional

from weakly.foundation.promptable import PIXEL_MEAN, PIXEL_STD, Frame, Pad, PromptableSegmenter
from weakly.foundation.sam import SamSegmenter
from weakly.foundation.small_sam import SmallSamConfig, build_small_sam

torch.set_num_threads(1)

BLACK = torch.tensor([-2.1179, -2.0357, -1.8044])
MEAN, STD = np.array(PIXEL_MEAN), np.array(PIXEL_STD)


@pytest.fixture(scope="module")
def sam() -> SamSegmenter:
    return SamSegmenter(tiny_sam(), "tiny")


@pytest.fixture(scope="module")
def sam_1024() -> SamSegmenter:
    """SAM's own frame, token width and N(0, 1) Gaussian matrix, with next to no image encoder."""
    torch.manual_seed(0)
    config = SmallSamConfig(image_size=1024, width=256, stem=8, stages=(8, 8, 8, 8), blocks=(1, 1, 1, 1), mlp_dim=64)
    return SamSegmenter(build_small_sam(config), "1024")


@pytest.fixture(scope="module")
def prompts(sam: SamSegmenter) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of 3 images, and 7 prompts that ask about them in no order."""
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(3, *sam.embedding_shape, generator=generator)
    corners = torch.rand(7, 2, 2, generator=generator).sort(1).values * 64
    return embeddings, sam.box_tokens(corners.flatten(1)), torch.tensor([2, 0, 0, 1, 2, 1, 0])


def with_pad(segmenter: SamSegmenter, pad: Pad) -> SamSegmenter:
    return SamSegmenter(segmenter.model, segmenter.name, pad)


def normalised(image: np.ndarray, height: int, width: int) -> Tensor:
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    return torch.from_numpy((resized / 255.0 - MEAN) / STD).permute(2, 0, 1).float()


class TestPreprocess:
    def test_center_black_puts_375x500_between_128_black_rows(self, sam_1024):
        image = random_image(375, 500)
        (pixels,) = with_pad(sam_1024, "center_black").preprocess([image])
        assert pixels.shape == (3, 1024, 1024)
        assert pixels.dtype == torch.float32
        torch.testing.assert_close(pixels[:, 128:896], normalised(image, 768, 1024), atol=1e-6, rtol=0)
        for rows in (pixels[:, :128], pixels[:, 896:]):
            torch.testing.assert_close(rows, BLACK.view(3, 1, 1).expand_as(rows), atol=5e-5, rtol=0)
            assert (rows == rows[:, :1, :1]).all()

    def test_center_black_gives_the_odd_row_to_the_bottom(self, sam_1024):
        image = random_image(224, 300)
        (pixels,) = with_pad(sam_1024, "center_black").preprocess([image])
        torch.testing.assert_close(pixels[:, 129:894], normalised(image, 765, 1024), atol=1e-6, rtol=0)
        is_black = (pixels[:, :, 0] - BLACK[:, None]).abs().max(0).values < 5e-5
        assert is_black[:129].all()
        assert is_black[894:].all()

    @pytest.mark.parametrize(("size", "content"), [((375, 500), (768, 1024)), ((224, 300), (765, 1024))])
    def test_sam_puts_the_same_content_at_the_origin_over_exact_zeros(self, sam_1024, size, content):
        image = random_image(*size)
        (pixels,) = sam_1024.preprocess([image])
        torch.testing.assert_close(pixels[:, : content[0]], normalised(image, *content), atol=1e-6, rtol=0)
        assert (pixels[:, content[0] :] == 0).all()

    def test_images_of_several_sizes_make_one_batch(self, sam):
        images = [random_image(30, 64), random_image(64, 30), random_image(9, 9)]
        batch = sam.preprocess(images)
        assert batch.shape == (3, 3, 64, 64)
        for row, image in zip(batch, images, strict=True):
            assert torch.equal(row, sam.preprocess([image])[0])

    def test_masks_stay_zero_and_one(self):
        mask = np.zeros((375, 500), np.uint8)
        mask[50:201, 33:402] = 1
        mask[::7] = 1
        resized = Frame.fit((375, 500), 1024).resize(mask)
        assert resized.shape == (768, 1024)
        assert set(np.unique(resized)) == {0, 1}
        reference = Image.fromarray(mask).resize((1024, 768), Image.Resampling.BILINEAR)
        assert np.array_equal(resized, np.asarray(reference))


class TestFrame:
    def test_boxes_of_the_worked_example(self):
        frame = Frame.fit((375, 500), 1024, "center_black")
        boxes = frame.boxes_to_frame(np.array([[10, 20, 110, 70.0]]))
        assert boxes.dtype == np.float64
        np.testing.assert_allclose(boxes, [[20.48, 168.96, 225.28, 271.36]], atol=1e-9)
        np.testing.assert_allclose(
            Frame.fit((375, 500), 1024).boxes_to_frame(np.array([[10, 20, 110, 70.0]])),
            [[20.48, 40.96, 225.28, 143.36]],
            atol=1e-9,
        )

    def test_coordinates_scale_by_the_rounded_content(self):
        frame = Frame.fit((333, 500), 1024)
        assert frame.content == (682, 1024)
        np.testing.assert_allclose(frame.points_to_frame(np.array([500.0, 333.0])), [1024, 682])

    @given(
        st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
        st.sampled_from([64, 256, 1024]),
        st.sampled_from(["sam", "center_black", "stretch"]),
        st.lists(st.tuples(st.floats(-50, 3000), st.floats(-50, 3000)), min_size=1, max_size=5),
    )
    def test_points_come_back(self, size, side, pad, points):
        frame = Frame.fit(size, side, pad)
        assert max(frame.content) == side
        assert frame.top + frame.content[0] <= side
        assert frame.left + frame.content[1] <= side
        xy = np.array(points)
        np.testing.assert_allclose(frame.points_to_image(frame.points_to_frame(xy)), xy, rtol=1e-9, atol=1e-6)

    @settings(deadline=None, max_examples=30)
    @given(st.tuples(st.integers(24, 200), st.integers(24, 200)), st.sampled_from(["sam", "center_black", "stretch"]))
    def test_logits_land_where_points_to_frame_says(self, size, pad):
        """A linear function of frame coordinates is the same function after resampling, borders aside."""
        frame = Frame.fit(size, 128, pad)
        cells = torch.arange(32) * 4 + 2.0
        slope = torch.tensor([0.31, -0.17])
        logits = slope[0] * cells[None, :] + slope[1] * cells[:, None]
        (result,) = frame.logits_to_image(logits[None])
        assert result.shape == size
        y, x = np.mgrid[: size[0], : size[1]] + 0.5
        xy = frame.points_to_frame(np.stack([x, y], -1))
        low = np.array([frame.left, frame.top]) + 3
        high = np.array([frame.left + frame.content[1], frame.top + frame.content[0]]) - 3
        inner = ((xy > low) & (xy < high)).all(-1)
        assert inner.any()
        expected = torch.from_numpy(xy).float() @ slope
        torch.testing.assert_close(result[inner], expected[inner], atol=1e-3, rtol=0)

    @given(
        st.tuples(st.integers(1, 90), st.integers(1, 90)),
        st.sampled_from([32, 64]),
        st.sampled_from(["sam", "center_black", "stretch"]),
    )
    @settings(deadline=None, max_examples=40)
    def test_logits_are_resized_to_the_frame_cut_and_resized_again(self, size, side, pad):
        frame = Frame.fit(size, side, pad)
        logits = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(sum(size)))
        large = functional.interpolate(logits[None], (side, side), mode="bilinear")
        height, width = frame.content
        inside = large[..., frame.top : frame.top + height, frame.left : frame.left + width]
        expected = functional.interpolate(inside, size, mode="bilinear")[0]
        torch.testing.assert_close(frame.logits_to_image(logits), expected, atol=1e-5, rtol=1e-5)


def closed_form(sam: SamSegmenter, xy: Tensor) -> Tensor:
    """(..., 2) frame points to (..., D): v = 2 pi (2 (xy + 0.5) / S - 1) G, then [sin v, cos v]."""
    gaussian = sam.model.shared_image_embedding.positional_embedding.detach()
    v = (2 * ((xy + 0.5) / sam.side) - 1) @ gaussian.to(xy.dtype) * (2 * math.pi)
    return torch.cat([v.sin(), v.cos()], -1)


class TestTeacherTokens:
    boxes = torch.tensor(
        [[0, 0, 1024, 1024], [20.48, 168.96, 225.28, 271.36], [-13.5, 900.25, 400.125, 1100.75], [511.5] * 4]
    )

    def test_box_corners_are_their_encodings_plus_l2_and_l3(self, sam_1024):
        embed = sam_1024.model.prompt_encoder.point_embed
        corner = torch.cat([embed[2].weight, embed[3].weight])
        tokens = sam_1024.box_tokens(self.boxes)
        assert tokens.shape == (4, 2, 256)
        expected = closed_form(sam_1024, self.boxes.view(-1, 2, 2)) + corner
        torch.testing.assert_close(tokens, expected, atol=1e-6, rtol=0)

    def test_an_encoding_has_norm_sqrt_128(self, sam_1024):
        embed = sam_1024.model.prompt_encoder.point_embed
        tokens = sam_1024.box_tokens(self.boxes)[:, 0] - embed[2].weight
        torch.testing.assert_close(tokens.norm(dim=-1), torch.full((4,), 128**0.5))

    def test_float64_boxes_give_the_same_tokens(self, sam_1024):
        exact = self.boxes.double() + torch.rand(4, 4, dtype=torch.float64)
        from_double, from_single = sam_1024.box_tokens(exact), sam_1024.box_tokens(exact.float())
        assert from_double.dtype == torch.float32
        torch.testing.assert_close(from_double, from_single, atol=1e-5, rtol=0)

    def test_ten_pixels_of_translation_are_2_7_in_token_space(self, sam_1024):
        corners = torch.rand(50, 2, 2, generator=torch.Generator().manual_seed(0)).sort(1).values * 900
        boxes = corners.flatten(1)
        moved = (sam_1024.box_tokens(boxes + 10) - sam_1024.box_tokens(boxes)).flatten(1).norm(dim=1)
        assert moved.min() > 2.2
        assert moved.max() < 3.2

    def test_a_point_is_followed_by_the_padding_token_bit_for_bit(self, sam_1024):
        points = torch.tensor([[0.0, 0.0], [511.5, 20.25], [-3.0, 1500.0]])
        encoder = sam_1024.model.prompt_encoder
        tokens = sam_1024.point_tokens(points)
        assert tokens.shape == (3, 2, 256)
        expected = closed_form(sam_1024, points) + encoder.point_embed[1].weight
        # Phases grow to 60 outside the frame, where float32 resolves 4e-6.
        torch.testing.assert_close(tokens[:, 0], expected, atol=5e-6, rtol=0)
        assert (tokens[:, 1] == encoder.not_a_point_embed.weight).all()

    def test_point_and_box_make_three_tokens_without_padding(self, sam_1024):
        points = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        tokens = sam_1024.point_tokens(points, self.boxes)
        assert tokens.shape == (4, 3, 256)
        torch.testing.assert_close(tokens[:, 0], sam_1024.point_tokens(points)[:, 0], atol=1e-6, rtol=0)
        torch.testing.assert_close(tokens[:, 1:], sam_1024.box_tokens(self.boxes), atol=1e-6, rtol=0)

    def test_no_prompts_make_no_tokens(self, sam):
        none = torch.zeros(0, 4)
        assert sam.box_tokens(none).shape == (0, 2, 32)
        assert sam.point_tokens(none[:, :2]).shape == (0, 2, 32)
        assert sam.point_tokens(none[:, :2], none).shape == (0, 3, 32)


class TestDecode:
    def test_shapes(self, sam, prompts):
        for multimask, count in ((False, 1), (True, 3)):
            masks, iou = sam.decode(*prompts, multimask=multimask)
            assert masks.shape == (7, count, 32, 32)
            assert iou.shape == (7, count)
            assert masks.dtype == iou.dtype == torch.float32

    @pytest.mark.parametrize("multimask", [False, True])
    def test_a_ragged_batch_is_the_prompts_one_by_one(self, sam, prompts, multimask):
        embeddings, tokens, image = prompts
        masks, iou = sam.decode(embeddings, tokens, image, multimask=multimask)
        for row in range(len(tokens)):
            own = embeddings[image[row]][None]
            alone = sam.decode(own, tokens[row : row + 1], torch.zeros(1, dtype=torch.int64), multimask=multimask)
            torch.testing.assert_close(masks[row : row + 1], alone[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(iou[row : row + 1], alone[1], atol=1e-5, rtol=1e-5)

    def test_the_library_says_the_same(self, sam, prompts):
        pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
        boxes = torch.tensor([[3.0, 4, 30, 40], [10, 10, 60, 64]])
        with torch.no_grad():
            library = sam.model(pixel_values=pixels, input_boxes=boxes[None], multimask_output=False)
        masks, iou = sam.decode(sam.encode(pixels), sam.box_tokens(boxes), torch.zeros(2, dtype=torch.int64))
        torch.testing.assert_close(masks, library.pred_masks[0], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(iou, library.iou_scores[0], atol=2e-5, rtol=1e-5)

    @pytest.mark.parametrize("chunk", [1, 2, 7])
    def test_the_chunk_changes_nothing(self, sam, prompts, chunk):
        small = SamSegmenter(sam.model, "small chunks", chunk=chunk)
        for got, expected in zip(small.decode(*prompts), sam.decode(*prompts), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)

    def test_no_prompts_make_no_masks(self, sam, prompts):
        none = torch.zeros(0, 2, 32), torch.zeros(0, dtype=torch.int64)
        masks, iou = sam.decode(prompts[0], *none, multimask=True)
        assert masks.shape == (0, 3, 32, 32)
        assert iou.shape == (0, 3)

    def test_gradients_reach_tokens_and_embeddings_but_no_weight(self, sam, prompts):
        embeddings, tokens, image = (value.clone() for value in prompts)
        embeddings.requires_grad_()
        tokens.requires_grad_()
        masks, _ = sam.decode(embeddings, tokens, image)
        masks.square().sum().backward()
        assert (tokens.grad.abs().sum((1, 2)) > 0).all()
        assert (embeddings.grad.abs().sum((1, 2, 3)) > 0).all()
        assert all(parameter.grad is None for parameter in sam.parameters())


class TestDecodeWanted:
    """The library's decoder is asked about one prompt at a time, for all its masks."""

    @pytest.fixture
    def grid(self, sam):
        generator = torch.Generator().manual_seed(4)
        embedding = torch.randn(1, *sam.embedding_shape, generator=generator)
        tokens = sam.point_tokens(sam.side * torch.rand(11, 2, generator=generator))
        return embedding, tokens, sam.decode(embedding, tokens, torch.zeros(11, dtype=torch.int64), multimask=True)

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
    def test_the_wanted_masks_are_those_of_decode(self, sam, grid, share):
        embedding, tokens, (logits, iou) = grid
        threshold = iou.quantile(1 - share) if share < 1 else iou.min() - 1
        rows, found, predicted = sam.decode_wanted(embedding, tokens, lambda some: some > threshold + 1e-6)
        expected = (iou > threshold + 1e-6).flatten().nonzero()[:, 0]
        torch.testing.assert_close(rows, expected)
        torch.testing.assert_close(predicted, iou, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found, logits.flatten(0, 1)[expected], atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("cache", [1, 3 * 64 * 32 * 4, 1 << 30])
    def test_groups_change_nothing(self, sam, grid, cache, monkeypatch):
        monkeypatch.setattr("weakly.foundation.sam_decoding.CACHE_BYTES", cache)
        embedding, tokens, (logits, _) = grid
        rows, found, _ = sam.decode_wanted(embedding, tokens, lambda some: torch.ones_like(some, dtype=torch.bool))
        assert rows.tolist() == list(range(33))
        torch.testing.assert_close(found, logits.flatten(0, 1), atol=1e-4, rtol=1e-4)

    def test_boxes_with_points_have_more_tokens(self, sam, grid):
        embedding, *_ = grid
        tokens = sam.point_tokens(torch.tensor([[20.0, 30.0]]), torch.tensor([[10.0, 12.0, 40.0, 50.0]]))
        logits, iou = sam.decode(embedding, tokens, torch.zeros(1, dtype=torch.int64), multimask=True)
        rows, found, predicted = sam.decode_wanted(embedding, tokens, lambda some: some == some.amax(1, keepdim=True))
        assert rows.tolist() == [int(iou.argmax())]
        torch.testing.assert_close(found, logits[0, rows], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(predicted, iou, atol=1e-5, rtol=1e-4)

    def test_it_is_what_a_segmenter_without_shortcuts_does(self, sam, grid):
        embedding, tokens, (_, iou) = grid
        answers = [
            decode(embedding, tokens, lambda some: some > iou.median() + 1e-6)
            for decode in (sam.decode_wanted, partial(PromptableSegmenter.decode_wanted, sam))
        ]
        for ours, plain in zip(*answers, strict=True):
            torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)

    def test_no_prompts_make_no_masks(self, sam, grid):
        rows, logits, iou = sam.decode_wanted(grid[0], grid[1][:0], lambda some: some > 0)
        assert (len(rows), logits.shape, iou.shape) == (0, (0, 32, 32), (0, 3))


class TestFrozen:
    def test_it_stays_in_eval_mode_inside_a_module_that_trains(self, sam):
        parent = nn.ModuleList([sam]).train()
        assert parent.training
        assert not any(module.training for module in sam.modules())
        assert not any(parameter.requires_grad for parameter in sam.parameters())

    def test_encoding_repeats_bit_for_bit_and_keeps_no_graph(self, sam):
        pixels = torch.randn(2, 3, 64, 64)
        first = sam.encode(pixels)
        assert first.shape == (2, *sam.embedding_shape)
        assert (first[0] - first[1]).abs().mean() > 0.1
        assert torch.equal(first, sam.encode(pixels))
        assert not first.requires_grad

    def test_the_fingerprint_knows_weights_and_padding(self, sam):
        same = SamSegmenter(tiny_sam(), "another name")
        assert same.fingerprint == sam.fingerprint
        assert with_pad(sam, "center_black").fingerprint != sam.fingerprint
        changed = tiny_sam()
        with torch.no_grad():
            changed.mask_decoder.iou_token.weight[0, 0] += 1e-6
        assert SamSegmenter(changed, "changed").fingerprint != sam.fingerprint
