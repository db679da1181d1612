"""What every promptable segmenter promises, on a tiny network of every family.

``native`` is the family's own way from pixels and prompts to masks: the library's ``forward``, or, for EfficientSAM, a
second implementation (``efficient_sam_reference``).
"""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import efficient_sam_reference as reference
import numpy as np
import pytest
import tiny_segmenters as tiny
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

import weakly.methods.wps
from weakly.data.dataset import Dataset, Record
from weakly.data.images import read_image
from weakly.foundation.efficient_sam import EfficientSamSegmenter
from weakly.foundation.efficient_sam_model import EfficientSam
from weakly.foundation.features import FeatureStore
from weakly.foundation.promptable import PIXEL_MEAN, Frame, PromptableSegmenter, PromptKind
from weakly.foundation.sam import SamSegmenter
from weakly.foundation.sam2 import Sam2Segmenter, Sam3Segmenter
from weakly.foundation.sam_hq import SamHqSegmenter
from weakly.labels import Boxes, Sample
from weakly.methods.base import ImageSource, Workspace
from weakly.methods.optimisation import Optimisation
from weakly.methods.wps import METHOD, WpsSettings
from weakly.methods.wps.predictor import WpsPredictor
from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary

torch.set_num_threads(1)

KINDS: tuple[PromptKind, ...] = ("box", "point", "point+box")
SIZES = ((40, 64), (64, 48), (50, 90))
CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-4}

Native = tuple[Tensor, Tensor]
"""Mask logits (N, K, 4h, 4w) and predicted IoU (N, K)."""


def prompts_in(side: int, count: int) -> tuple[Tensor, Tensor]:
    """(count, 2) points and (count, 4) boxes in a frame."""
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(count, 2, 2, generator=generator).sort(1).values * side
    return torch.rand(count, 2, generator=generator) * side, corners.flatten(1)


def tokens_of(segmenter: PromptableSegmenter, kind: PromptKind, points: Tensor, boxes: Tensor) -> Tensor:
    if kind == "box":
        return segmenter.box_tokens(boxes)
    return segmenter.point_tokens(points, boxes if kind == "point+box" else None)


def library_masks(
    model: nn.Module, pixels: Tensor, kind: PromptKind, points: Tensor, boxes: Tensor, multimask: bool
) -> Native:
    """``model(...)`` of the library: image b with prompt b."""
    asked = {"input_boxes": boxes[:, None]} if "box" in kind else {}
    if "point" in kind:
        asked["input_points"] = points[:, None, None]
    with torch.no_grad():
        said = model(pixel_values=pixels, multimask_output=multimask, **asked)
    return said.pred_masks[:, 0], said.iou_scores[:, 0]


def images(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(len(SIZES))]
    for path, size in zip(paths, SIZES, strict=True):
        Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(path)
    return paths


def boxed_dataset(folder: Path) -> Dataset:
    """Noise with two boxes per image."""
    records = []
    for index, (path, size) in enumerate(zip(images(folder), SIZES, strict=True)):
        boxes = np.array([[4, 6, 30, 34], [20, 10, 44, 38]], np.float32)
        sample = Sample(index, path, size, boxes=Boxes(boxes, np.array([0, 1])))
        records.append(Record(sample, tuple((label, [_ring(box)]) for label, box in enumerate(boxes.tolist()))))
    return Dataset("noise", "train", Vocabulary.from_names(("This", "That")), tuple(records))


def _ring(box: list[float]) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1, y0, x1, y1, x0, y1]


class SegmenterContract:
    """Subclasses say how to build the family and what it answers by itself."""

    paddings: ClassVar[tuple[str, ...]] = ("stretch",)
    channels: ClassVar[int] = 32

    @classmethod
    def build(cls, seed: int = 0, pad: str = "") -> PromptableSegmenter:
        raise NotImplementedError

    def native(
        self, segmenter: Any, pixels: Tensor, kind: PromptKind, points: Tensor, boxes: Tensor, multimask: bool
    ) -> Native:
        return library_masks(segmenter.model, pixels, kind, points, boxes, multimask)

    @pytest.fixture(scope="class")
    @classmethod
    def segmenter(cls) -> PromptableSegmenter:
        return cls.build()

    @pytest.fixture(scope="class")
    @classmethod
    def pixels(cls, segmenter: PromptableSegmenter) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        return torch.randn(3, 3, segmenter.side, segmenter.side, generator=generator)

    @pytest.fixture(scope="class")
    @classmethod
    def embeddings(cls, segmenter: PromptableSegmenter, pixels: Tensor) -> Tensor:
        return segmenter.encode(pixels)

    def test_what_it_says_of_itself(self, segmenter, embeddings):
        assert embeddings.shape == (3, *segmenter.embedding_shape)
        assert segmenter.embedding_shape == (self.channels, 8, 8)
        assert segmenter.student_channels == segmenter.token_width == 32
        assert segmenter.pad == self.paddings[0]
        for kind in KINDS:
            tokens = tokens_of(segmenter, kind, *prompts_in(segmenter.side, 4))
            assert tokens.shape == (4, segmenter.token_counts[kind], 32)
            assert tokens_of(segmenter, kind, torch.zeros(0, 2), torch.zeros(0, 4)).shape == (0, *tokens.shape[1:])

    def test_an_image_lies_in_the_frame_where_its_coordinates_say(self, segmenter):
        """A bright box on black is found at its frame coordinates, and a mask of it comes back to its place."""
        image = np.zeros((90, 120, 3), np.uint8)
        image[18:57, 42:93] = 255
        box = np.array([[42, 18, 93, 57.0]])
        for pad in self.paddings:
            seen = self.build(pad=pad)
            frame = seen.frame((90, 120))
            np.testing.assert_allclose(frame.points_to_image(frame.points_to_frame(box.reshape(2, 2))).ravel(), box[0])
            bright = seen.preprocess([image])[0].mean(0)
            bright = bright > (bright.max() + bright.min()) / 2
            rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
            found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(found, frame.boxes_to_frame(box)[0], atol=1)
            logits = functional.interpolate(bright[None, None].float(), (32, 32), mode="area")[0] - 0.5
            mask = frame.logits_to_image(logits)[0].numpy() > 0
            truth = image[..., 0] > 0
            assert (mask & truth).sum() / (mask | truth).sum() > 0.85

    def test_stretched_or_padded(self, segmenter):
        content = segmenter.frame((40, 80)).content
        assert content == (
            (segmenter.side,) * 2 if segmenter.pad == "stretch" else (segmenter.side // 2, segmenter.side)
        )

    @pytest.mark.parametrize(("kind", "multimask"), list(product(KINDS, (False, True))))
    def test_our_tokens_decode_to_the_familys_own_masks(self, segmenter, pixels, embeddings, kind, multimask):
        points, boxes = prompts_in(segmenter.side, 3)
        expected, expected_iou = self.native(segmenter, pixels, kind, points, boxes, multimask)
        tokens = tokens_of(segmenter, kind, points, boxes)
        masks, iou = segmenter.decode(embeddings, tokens, torch.arange(3), multimask=multimask)
        assert masks.shape == (3, 3 if multimask else 1, 32, 32)
        torch.testing.assert_close(masks, expected, **CLOSE)
        torch.testing.assert_close(iou, expected_iou, **CLOSE)
        assert masks.std() > 1e-2, "the weights of this test say nothing"
        other, _ = segmenter.decode(embeddings, tokens.flip(0), torch.arange(3), multimask=multimask)
        assert (other[0] - masks[0]).abs().max() > 1e-3, "prompts make no difference in this test"

    @pytest.mark.parametrize("multimask", [False, True])
    def test_a_ragged_batch_is_the_prompts_one_by_one(self, segmenter, embeddings, multimask):
        tokens = tokens_of(segmenter, "box", *prompts_in(segmenter.side, 5))
        image = torch.tensor([2, 0, 0, 1, 2])
        segmenter.chunk, chunk = 2, segmenter.chunk
        masks, iou = segmenter.decode(embeddings, tokens, image, multimask=multimask)
        segmenter.chunk = chunk
        first = torch.zeros(1, dtype=torch.int64)
        for row in range(5):
            own = embeddings[image[row]][None]
            alone = segmenter.decode(own, tokens[row][None], first, multimask=multimask)
            torch.testing.assert_close(masks[row][None], alone[0], **CLOSE)
            torch.testing.assert_close(iou[row][None], alone[1], **CLOSE)

    def test_no_prompts_make_no_masks(self, segmenter, embeddings):
        none = torch.zeros(0, segmenter.token_counts["box"], 32), torch.zeros(0, dtype=torch.int64)
        masks, iou = segmenter.decode(embeddings, *none, multimask=True)
        assert (masks.shape, iou.shape) == ((0, 3, 32, 32), (0, 3))

    def test_wanted_masks_are_those_of_decode(self, segmenter, embeddings):
        points, boxes = prompts_in(segmenter.side, 4)
        tokens = tokens_of(segmenter, "point", points, boxes)
        logits, iou = segmenter.decode(embeddings[:1], tokens, torch.zeros(4, dtype=torch.int64), multimask=True)
        wanted = partial(torch.gt, other=float(iou.median()) + 1e-6)
        rows, found, said = segmenter.decode_wanted(embeddings[:1], tokens, wanted)
        assert rows.tolist() == wanted(iou).flatten().nonzero()[:, 0].tolist()
        torch.testing.assert_close(found, logits.flatten(0, 1)[rows], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(said, iou, **CLOSE)

    def test_images_of_a_batch_do_not_meet(self, segmenter, pixels, embeddings):
        for row in range(3):
            torch.testing.assert_close(segmenter.encode(pixels[row : row + 1])[0], embeddings[row], **CLOSE)
        assert (embeddings[0] - embeddings[1]).abs().mean() > 1e-2

    def test_it_is_frozen_for_good(self, segmenter, pixels, embeddings):
        nn.ModuleList([segmenter]).train()
        assert not any(module.training for module in segmenter.modules())
        assert not any(parameter.requires_grad for parameter in segmenter.parameters())
        assert not embeddings.requires_grad
        assert torch.equal(segmenter.encode(pixels), embeddings)

    def test_the_fingerprint_knows_weights_and_preprocessing(self, segmenter):
        assert self.build().fingerprint == segmenter.fingerprint
        changed = self.build()
        with torch.no_grad():
            next(changed.parameters()).flatten()[0] += 1e-4
        others = [changed, self.build(seed=1), *(self.build(pad=pad) for pad in self.paddings[1:])]
        assert len({each.fingerprint for each in (segmenter, *others)}) == 1 + len(others)

    def test_stored_features_decode_to_the_same_masks(self, segmenter, tmp_path):
        paths = images(tmp_path)
        exact = segmenter.encode(segmenter.preprocess([read_image(path) for path in paths]))
        tokens = tokens_of(segmenter, "box", *prompts_in(segmenter.side, 3))
        masks, _ = segmenter.decode(exact, tokens, torch.arange(3))
        for dtype, tolerance in (("float32", 1e-5), ("float16", 2e-2)):
            store = FeatureStore.open(tmp_path / "features", segmenter, dtype)
            keys = store.build(paths).keys
            torch.testing.assert_close(store.get(keys), exact, atol=tolerance, rtol=tolerance)
            stored, _ = segmenter.decode(store.get(keys), tokens, torch.arange(3))
            assert (stored - masks).norm() < tolerance * masks.norm()
            assert store.image_bytes == {"float32": 4, "float16": 2}[dtype] * self.channels * 64

    @pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
    def test_a_student_holds_its_own_channels_alone(self, segmenter, tmp_path, dtype):
        store = FeatureStore.open(tmp_path / "features", segmenter, dtype)
        keys = store.build(images(tmp_path)).keys
        for budget in (0, store.image_bytes * 32 // self.channels * 3):  # from disk, and in memory
            held = store.hold(keys, budget, channels=segmenter.student_channels)
            assert held.resident == (budget > 0)
            assert torch.equal(held[torch.tensor([2, 0])], store.get([keys[2], keys[0]])[:, :32])

    def test_gradients_reach_a_students_tokens_and_no_weight(self, segmenter, embeddings):
        tokens = tokens_of(segmenter, "box", *prompts_in(segmenter.side, 3)).clone().requires_grad_()
        masks, _ = segmenter.decode(embeddings, tokens, torch.arange(3))
        masks.square().sum().backward()
        assert (tokens.grad.abs().sum((1, 2)) > 0).all()
        assert all(parameter.grad is None for parameter in segmenter.parameters())

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_student_trains_on_it_and_predicts(self, segmenter, tmp_path, monkeypatch, kind):
        """WPS-SAM as a whole: features stored, the student's channels held, steps taken, images segmented."""
        monkeypatch.setattr(weakly.methods.wps, "frozen_segmenter", lambda *_, **__: segmenter)
        settings = WpsSettings(supervision=kind, queries=4, width=16, heads=2, layers=1, ffn=16, downsamples=1)
        workspace = Workspace(tmp_path / "run", tmp_path / "features", feature_dtype="float32")
        dataset = boxed_dataset(tmp_path)
        data = METHOD.prepare(settings, dataset, workspace)
        batch = data.__getitems__([0, 1, 2])
        assert batch.embeddings.shape == (3, 32, 8, 8)
        torch.manual_seed(0)
        learner = METHOD.learner(settings, dataset.vocabulary, Optimisation(lr=1e-3), 10)
        optimizer = torch.optim.Adam(learner.student.parameters(), 1e-2)
        losses = []
        for _ in range(6):
            loss, _ = learner.training_loss(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        with torch.no_grad():
            learner.student.class_head.bias[-1] -= 100  # every query sees something
        predictor = WpsPredictor(learner.student, segmenter, dataset.vocabulary, settings)
        sources = [ImageSource(sample.image_id, sample.path, partial(read_image, sample.path)) for sample in dataset]
        for found, size in zip(predictor.predict(sources), SIZES, strict=True):
            assert isinstance(found, Segmentation)
            assert found.size == size
            assert len(found.rles) == 4


class TestSam(SegmenterContract):
    paddings = ("sam", "center_black", "stretch")

    @classmethod
    def build(cls, seed: int = 0, pad: str = "") -> SamSegmenter:
        return SamSegmenter(tiny.tiny_sam(seed), "sam", pad or "sam")


class TestMobileSam(SegmenterContract):
    """SAM's prompts and decoder: the library's ``forward`` runs on our encoder, which has tests of its own."""

    paddings = ("sam", "center_black", "stretch")

    @classmethod
    def build(cls, seed: int = 0, pad: str = "") -> SamSegmenter:
        return SamSegmenter(tiny.tiny_mobile_sam(seed), "mobile-sam", pad or "sam")


class TestSamHq(SegmenterContract):
    paddings = ("sam", "center_black", "stretch")
    channels = 96

    @classmethod
    def build(cls, seed: int = 0, pad: str = "") -> SamHqSegmenter:
        return SamHqSegmenter(tiny.tiny_sam_hq(seed), "sam-hq", pad or "sam")

    def native(
        self, segmenter: Any, pixels: Tensor, kind: PromptKind, points: Tensor, boxes: Tensor, multimask: bool
    ) -> Native:
        """The library's, its slip mended (it draws on the pixels before the transformer), its order undone."""
        decoder, iou = segmenter.model.mask_decoder, []
        hooks = [
            decoder.transformer.register_forward_hook(_hand_over_pixels, with_kwargs=True),
            decoder.iou_prediction_head.register_forward_hook(lambda _module, _args, said: iou.append(said[:, 0])),
        ]
        masks, _ = library_masks(segmenter.model, pixels, kind, points, boxes, multimask)
        for hook in hooks:
            hook.remove()
        if not multimask:
            return masks, iou[0][:, :1]
        back = iou[0][:, 1:].argsort(1, descending=True).argsort(1)
        return masks.take_along_dim(back[..., None, None], 1), iou[0][:, 1:]


def _hand_over_pixels(
    _module: nn.Module, _args: tuple[Any, ...], asked: dict[str, Tensor], answer: tuple[Tensor, Tensor]
) -> None:
    asked["image_embeddings"].data = answer[1]


class TestSam2(SegmenterContract):
    channels = 128

    @classmethod
    def build(cls, seed: int = 0, pad: str = "") -> Sam2Segmenter:
        return Sam2Segmenter(tiny.tiny_sam2(seed), "sam2")

    def test_packing_keeps_the_familys_own_maps(self, segmenter, pixels, embeddings):
        finest, finer, embedding = segmenter.model.get_image_embeddings(pixels)
        assert torch.equal(embeddings[:, :32], embedding)
        assert torch.equal(functional.pixel_shuffle(embeddings[:, 32:64], 2), finer)
        assert torch.equal(functional.pixel_shuffle(embeddings[:, 64:], 4), finest)


class TestSam3(SegmenterContract):
    channels = 128

    @classmethod
    def build(cls, seed: int = 0, pad: str = "") -> Sam3Segmenter:
        return Sam3Segmenter(tiny.tiny_sam3(seed), "sam3")

    def native(
        self, segmenter: Any, pixels: Tensor, kind: PromptKind, points: Tensor, boxes: Tensor, multimask: bool
    ) -> Native:
        """The same weights without the coarsest map, to which the library would add the no-memory embedding."""
        three = tiny.tiny_sam3(scale_factors=(4.0, 2.0, 1.0))
        three.load_state_dict(segmenter.model.state_dict(), strict=False)
        return library_masks(three, pixels, kind, points, boxes, multimask)

    def test_pixels_lie_between_minus_one_and_one(self, segmenter):
        image = np.zeros((10, 10, 3), np.uint8)
        image[:, :5] = 255
        (pixels,) = segmenter.preprocess([image])
        assert (pixels.min(), pixels.max()) == (-1, 1)


class TestEfficientSam(SegmenterContract):
    @classmethod
    def build(cls, seed: int = 0, pad: str = "") -> EfficientSamSegmenter:
        return EfficientSamSegmenter(tiny.tiny_efficient_sam(seed), tiny.TINY_EFFICIENT, "efficient-sam")

    def native(
        self, segmenter: Any, pixels: Tensor, kind: PromptKind, points: Tensor, boxes: Tensor, multimask: bool
    ) -> Native:
        """Labels 1, 2, 3 for point and corners; for one mask the best of the three by predicted IoU."""
        state = published_positions(segmenter.model)
        answers = []
        for image, (x, y), (x0, y0, x1, y1) in zip(pixels, points.tolist(), boxes.tolist(), strict=True):
            asked = [(x, y, 1)] * ("point" in kind) + [(x0, y0, 2), (x1, y1, 3)] * ("box" in kind)
            prompt = reference.prompt(state, asked, segmenter.side)
            masks, iou = reference.decode(state, reference.encode(state, image, heads=2), prompt, heads=8)
            best = iou.argmax()[None]
            answers.append((masks, iou) if multimask else (masks[best], iou[best]))
        masks, iou = zip(*answers, strict=True)
        return torch.stack(masks), torch.stack(iou)


def published_positions(model: EfficientSam) -> dict[str, Tensor]:
    """The weights with a class token's position before those of the grid, as in the published files."""
    state = dict(model.state_dict())
    positions = state["image_encoder.pos_embed"]
    state["image_encoder.pos_embed"] = torch.cat([torch.full_like(positions[:, :1], torch.nan), positions], 1)
    return state


def test_a_stretched_frame_scales_its_axes_apart():
    frame = Frame.fit((30, 60), 120, "stretch")
    assert (frame.content, frame.top, frame.left) == ((120, 120), 0, 0)
    np.testing.assert_allclose(frame.boxes_to_frame(np.array([[6, 3, 60, 30.0]])), [[12, 12, 120, 120]])
    assert frame.resize(np.zeros((30, 60, 3), np.uint8)).shape == (120, 120, 3)


def test_only_sam3_departs_from_imagenets_normalisation():
    families = (SamSegmenter, SamHqSegmenter, Sam2Segmenter, EfficientSamSegmenter)
    assert {family.pixel_mean for family in families} == {PIXEL_MEAN}
    assert Sam3Segmenter.pixel_mean == (0.5, 0.5, 0.5)
