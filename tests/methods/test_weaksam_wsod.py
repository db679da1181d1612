"""The detector, its drop block, and its detections over several views."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_wsod import SETTINGS, tiny_detector, tiny_image, tiny_proposals, tiny_views
from torch import Tensor
from torchvision.ops import box_iou

from weakly.errors import UserError
from weakly.methods.weaksam.drop_block import ConcreteDropBlock, DropBlockSettings, hide
from weakly.methods.weaksam.wsod import (
    HeadOutputs,
    RoiPredictions,
    WsodDetector,
    build_detector,
    roi_predictions,
    wsod_losses,
)
from weakly.methods.weaksam.wsod_backbone import build_stages, build_vgg16
from weakly.methods.weaksam.wsod_data import PixelViews, mirror
from weakly.methods.weaksam.wsod_inference import (
    DetectionFiles,
    WsodInference,
    detect,
    detect_images,
    detection_identity,
    read_detections,
    score_rois,
    select,
    votes,
)
from weakly.methods.weaksam.wsod_settings import WsodSettings, oicr_settings
from weakly.vocabulary import Category, Vocabulary

VIEWS = WsodInference(sizes=(32, 48), max_size=96)
VOCABULARY = Vocabulary((Category("red", source_id=3), Category("blue", source_id=8)))


@pytest.fixture(scope="module")
def detector() -> WsodDetector:
    return tiny_detector().eval()


def views_of(*indices: int) -> tuple[list[Tensor], list[Tensor]]:
    views = [tiny_views(index).view(48, 96, mirrored=False) for index in indices]
    return [view.inputs for view in views], [view.boxes for view in views]


# --- backbones


def test_vgg16_has_stride_8_and_keeps_its_first_groups() -> None:
    body = build_vgg16(None)
    with torch.no_grad():
        assert body.network(torch.zeros(1, 3, 64, 48)).shape == (1, body.channels, 8, 6) == (1, 512, 8, 6)
    convolutions = [layer for layer in body.network if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.weight.requires_grad for layer in convolutions] == [False] * 4 + [True] * 9
    assert [layer.dilation[0] for layer in convolutions] == [1] * 10 + [2] * 3
    assert isinstance(body.network[-1], torch.nn.Conv2d)
    assert isinstance(build_vgg16(None, last_relu=True).network[-1], torch.nn.ReLU)


@pytest.mark.parametrize(("stages", "channels"), [(2, 128), (3, 256)])
def test_stages_of_a_resnet_have_stride_8(stages: int, channels: int) -> None:
    body = build_stages("resnet10t", stages, "group", None)
    assert body.network(torch.zeros(1, 3, 64, 48)).shape == (1, body.channels, 8, 6) == (1, channels, 8, 6)


def test_local_weights_are_loaded_and_frozen_norms_stay(tmp_path: Path) -> None:
    other = build_stages("resnet10t", 2, "frozen", None).network.network.state_dict()
    weights = {name: value + 0.25 if value.is_floating_point() else value for name, value in other.items()}
    safetensors.torch.save_file({**weights, "fc.weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    settings = replace(SETTINGS, norm="frozen", weights=str(tmp_path / "weights.safetensors"))
    body = build_detector(settings, 2).body.train()
    for name, value in body.network.state_dict().items():
        assert torch.equal(value, weights[name])
    before = {name: value.clone() for name, value in body.named_buffers()}
    body(torch.randn(2, 3, 32, 32))
    assert before and all(torch.equal(before[name], value) for name, value in body.named_buffers())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet1000"}, "resnet1000.*give vgg16"),
        ({"norm": "frozen"}, "names none; give weights"),
        ({"weights": "timm"}, "set norm to 'frozen'"),
        ({"weights": "/nowhere/w.safetensors"}, "cannot be read"),
        ({"backbone": "vgg16", "weights": "IMAGENET"}, "no weights 'IMAGENET'; give one of IMAGENET1K_V1"),
    ],
)
def test_wrong_backbones_name_their_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_detector(replace(SETTINGS, **changes), 2)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"conv1.0.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="does not fit the network, it lacks"):
        build_detector(replace(SETTINGS, weights=str(path)), 2)


@pytest.mark.parametrize(
    "wrong", [{"portion": 0.0}, {"dropout": 1.0}, {"width": 0}, {"stages": 1}, {"frozen_groups": 6}]
)
def test_wrong_settings_name_their_remedy(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))}.*give"):
        WsodSettings(**wrong)


# --- the drop block


def drop_block(share: float = 0.3) -> ConcreteDropBlock:
    torch.manual_seed(0)
    return ConcreteDropBlock(4, DropBlockSettings(share=share))


def test_nothing_is_hidden_in_evaluation() -> None:
    pooled = torch.randn(6, 4, 7, 7)
    assert drop_block().eval()(pooled) is pooled


def test_hidden_parts_are_made_up_for() -> None:
    pooled = torch.randn(64, 4, 7, 7)
    block = drop_block()
    keep = block.keep(pooled).detach()
    assert set(keep.round(decimals=5).abs().unique().tolist()) == {0.0, 1.0} and keep.shape == (64, 1, 7, 7)
    torch.testing.assert_close(hide(pooled, keep) * keep.sum(), pooled * keep * keep.numel())
    torch.manual_seed(1)
    shown = block(pooled)
    torch.manual_seed(1)
    torch.testing.assert_close(shown, hide(pooled, block.keep(pooled)))
    hidden = 1 - float(keep.mean())
    assert 0.02 < hidden < 0.3, "at most the share, for sigmoids are below 1 and squares overlap"


def test_the_gate_teaches_nobody_but_itself() -> None:
    producer = torch.randn(8, 4, 7, 7, requires_grad=True)
    block = drop_block()
    block.settings = DropBlockSettings(temperature=1.0)
    (block.keep(producer) * torch.randn(8, 1, 7, 7)).sum().backward()
    assert producer.grad is None
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in block.parameters())
    assert any(p.grad.abs().sum() > 0 for p in block.parameters())
    block(producer).sum().backward()
    assert producer.grad is not None, "the features themselves go on learning"


def test_a_gate_sure_of_itself_stays_finite() -> None:
    block = drop_block()
    torch.nn.init.constant_(block.shortcut.bias, -1000)
    keep = block.keep(torch.randn(8, 4, 7, 7))
    keep.sum().backward()
    assert (keep == 1).all() and all(torch.isfinite(p.grad).all() for p in block.parameters())


# --- heads and losses


@pytest.mark.parametrize(("settings", "columns"), [(SETTINGS, 3), (oicr_settings(SETTINGS), 2)])
def test_heads_have_the_columns_of_their_method(settings: WsodSettings, columns: int) -> None:
    model = tiny_detector(settings=settings)
    images, boxes = views_of(0, 1)
    pixels = model.prepare(images)
    assert pixels.shape == (2, 3, 64, 64) and not pixels[:, :, 48:].any()
    outputs = model(pixels, boxes)
    assert outputs.cls.shape == outputs.det.shape == (40, columns) and outputs.logits.shape == (3, 40, 3)
    assert (outputs.offsets is None) == (settings.head == "oicr")
    losses = wsod_losses(outputs, boxes, torch.eye(2, dtype=torch.bool), settings)
    assert set(losses) == {"loss", "image", "classification"} | ({"regression"} if settings.head == "mist" else set())
    torch.testing.assert_close(losses["loss"], sum(value for name, value in losses.items() if name != "loss"))
    losses["loss"].backward()
    untrained = {name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()}
    assert not untrained


@pytest.mark.parametrize("settings", [SETTINGS, oicr_settings(SETTINGS), replace(SETTINGS, mining="top")])
def test_the_loss_of_a_batch_is_the_mean_of_its_views(settings: WsodSettings) -> None:
    model = tiny_detector(settings=settings).eval()
    tags = torch.tensor([[True, False], [True, True]])
    with torch.no_grad():
        images, boxes = views_of(0, 1)
        both = wsod_losses(model(model.prepare(images), boxes), boxes, tags, settings)
        for index, tag in enumerate(tags):
            alone = model(model.prepare(images[index : index + 1]), boxes[index : index + 1])
            one = wsod_losses(alone, boxes[index : index + 1], tag[None], settings)
            both = {name: value - one[name] / 2 for name, value in both.items()}
    for value in both.values():
        assert float(value) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("pool", ["pool", "align"])
def test_a_roi_sees_its_own_cells(pool: str) -> None:
    model = tiny_detector(settings=replace(SETTINGS, pool=pool, drop_block=None)).eval()
    model.body = torch.nn.Identity()  # the pixels at stride 8 are the features
    cells = torch.zeros(1, 1, 16, 16)
    cells[..., 2:9, 4:11] = 1
    pooled = model.pooled(cells, [torch.tensor([[32.0, 16, 88, 72]])])
    assert pooled.shape == (1, 1, 7, 7)
    if pool == "pool":
        assert (pooled == 1).all(), "RoIPool reads an inclusive end; 88 is the first pixel outside"
    else:
        assert (pooled[..., 1:6, 1:6] == 1).all()


def test_colours_are_those_of_the_weights() -> None:
    image = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None].expand(3, 32, 32)
    caffe = tiny_detector(settings=replace(SETTINGS, colours="caffe")).prepare([image])
    torch.testing.assert_close(caffe[0, :, 0, 0], torch.tensor([30 - 102.9801, 20 - 115.9465, 10 - 122.7717]))


def test_predictions_are_the_mean_of_the_branches() -> None:
    boxes = torch.tensor([[10.0, 20, 30, 60]])
    offsets = torch.zeros(3, 1, 2, 4)
    offsets[:, 0, 1, 0] = torch.tensor([1.0, 2, 3])  # the mean, 2, is a fifth of the width
    logits = torch.tensor([[[0.0, 0]], [[0, 100]], [[100, 0]]])
    seen = roi_predictions(HeadOutputs(logits[0], logits[0], logits, offsets), boxes)
    torch.testing.assert_close(seen.boxes, torch.tensor([[[14.0, 20, 34, 60]]]))
    torch.testing.assert_close(seen.scores, torch.tensor([[0.5]]))


def test_random_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    one = tiny_detector()
    torch.manual_seed(6)
    other = tiny_detector()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# --- views and detections


def test_a_mirrored_image_has_mirrored_detections(detector: WsodDetector) -> None:
    image, boxes = tiny_image(2), tiny_proposals(2)
    turned = mirror(torch.from_numpy(boxes), 64).numpy()
    seen = score_rois(detector, PixelViews(image, boxes), VIEWS)
    other = score_rois(detector, PixelViews(np.ascontiguousarray(image[:, ::-1]), turned), VIEWS)
    torch.testing.assert_close(seen.scores, other.scores, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(seen.boxes, mirror(other.boxes, 64), atol=1e-3, rtol=1e-5)


def test_views_are_averaged(detector: WsodDetector) -> None:
    image = tiny_views(2)
    views = [score_rois(detector, image, WsodInference((size,), 96, flip=False)) for size in (32, 48)]
    both = score_rois(detector, image, WsodInference((32, 48), 96, flip=False))
    torch.testing.assert_close(both.scores, (views[0].scores + views[1].scores) / 2)
    torch.testing.assert_close(both.boxes, (views[0].boxes + views[1].boxes) / 2)


def test_the_whole_outvotes_its_best_part() -> None:
    """Three boxes around an object, of which each says 0.6, against a part that says 0.9."""
    boxes = torch.tensor([[0.0, 0, 40, 40], [0, 0, 42, 40], [0, 0, 40, 44], [5, 5, 15, 15]])
    scores = torch.tensor([[0.6], [0.6], [0.6], [0.9]])
    ranked = votes(scores, box_iou(boxes, boxes), 0.5)
    torch.testing.assert_close(ranked, torch.tensor([[0.6], [0.6], [0.6], [0.3]]))


@pytest.mark.parametrize("count", [1, 2, 20])
def test_votes_are_probabilities_and_alone_a_roi_votes_for_itself(count: int) -> None:
    boxes, scores = torch.from_numpy(tiny_proposals(0, 20))[:count], torch.rand(count, 3)
    overlaps = box_iou(boxes, boxes)
    ranked = votes(scores, overlaps, 0.5)
    near = [[j for j in range(count) if overlaps[i, j] >= 0.5] for i in range(count)]
    most = max(map(len, near))
    torch.testing.assert_close(ranked, torch.stack([scores[voters].sum(0) / most for voters in near]))
    assert float(ranked.min()) >= 0 and float(ranked.max()) <= 1 + 1e-6
    torch.testing.assert_close(votes(scores, torch.eye(count), 0.5), scores)


def test_detections_may_be_ranked_by_votes(detector: WsodDetector) -> None:
    image = tiny_views(2)
    alone, voted = (score_rois(detector, image, replace(VIEWS, vote_iou=iou)) for iou in (None, 0.3))
    boxes = torch.from_numpy(image.boxes)
    torch.testing.assert_close(voted.scores, votes(alone.scores, box_iou(boxes, boxes), 0.3))
    assert torch.equal(voted.boxes, alone.boxes) and not torch.equal(voted.scores, alone.scores)
    with pytest.raises(UserError, match=r"vote_iou is 0\.0; give"):
        WsodInference(vote_iou=0.0)


def test_detections_are_the_best_of_each_category_inside_the_image() -> None:
    boxes = torch.tensor([[-5.0, 0, 20, 20], [0, 0, 20, 21], [30, 30, 80, 50], [70, 0, 90, 10]])
    scores = torch.tensor([[0.9, 0.2], [0.8, 0.4], [0.3, 0.0], [0.95, 0.9]])
    seen = RoiPredictions(boxes[:, None].expand(-1, 2, -1), scores)
    found = select(seen, (48, 64), VIEWS)
    assert found.labels.tolist() == [0, 1, 0] and found.scores.tolist() == pytest.approx([0.9, 0.4, 0.3])
    assert found.boxes.tolist() == [[0, 0, 20, 20], [0, 0, 20, 21], [30, 30, 64, 48]]
    assert len(select(seen, (48, 64), replace(VIEWS, detections=1)).boxes) == 1
    assert len(select(seen, (48, 64), replace(VIEWS, min_score=0.35)).boxes) == 2


def run(detector: WsodDetector, folder: Path, stop: int | None = None) -> Any:
    def tell(done: int, _: int) -> None:
        if done == stop:
            raise KeyboardInterrupt

    files = DetectionFiles(folder, "train", "ab" * 32)
    proposals = [tiny_proposals(0), np.zeros((0, 4), np.float32), tiny_proposals(2), tiny_proposals(3)]
    readers = [lambda index=index: tiny_views(index) for index in range(4)]
    readers[1] = lambda: pytest.fail("an image without proposals is not opened")
    return files, detect_images(detector, readers, proposals, VIEWS, files, [5, 6, "seven", 8], VOCABULARY, tell)


def same(one: Any, other: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


def test_a_stopped_detection_goes_on_and_ends_with_the_same_bytes(detector: WsodDetector, tmp_path: Path) -> None:
    files, whole = run(detector, tmp_path / "whole")
    assert same(whole[2], detect(detector, tiny_views(2), VIEWS))
    with pytest.raises(KeyboardInterrupt):
        run(detector, tmp_path / "stopped", stop=3)
    partial = DetectionFiles(tmp_path / "stopped", "train", "ab" * 32).partial
    with partial.open("a") as file:
        file.write("[[[1, 2, 3")  # killed in the middle of a row
    assert len(partial.read_text().splitlines()) == 4
    stopped_files, stopped = run(detector, tmp_path / "stopped")
    assert stopped_files.results.read_bytes() == files.results.read_bytes() and not partial.exists()
    assert all(same(a, b) for a, b in zip(whole, stopped, strict=True))
    _, again = run(detector, tmp_path / "whole")
    assert all(same(a, b) for a, b in zip(whole, again, strict=True)), "what is read is what was found"


def test_the_file_is_coco_results(detector: WsodDetector, tmp_path: Path) -> None:
    files, found = run(detector, tmp_path)
    rows = json.loads(files.results.read_text())
    assert {row["image_id"] for row in rows} == {5, "seven", 8} and {row["category_id"] for row in rows} <= {3, 8}
    box = found[0].boxes[0].tolist()
    assert rows[0]["bbox"] == [box[0], box[1], box[2] - box[0], box[3] - box[1]] and not len(found[1].boxes)
    with pytest.raises(UserError, match="delete it"):
        read_detections(files.results, [5], VOCABULARY)
    files.results.write_text("{")
    with pytest.raises(UserError, match="delete it"):
        read_detections(files.results, [5], VOCABULARY)


def test_detections_are_told_apart_by_all_they_depend_on(detector: WsodDetector) -> None:
    other = tiny_detector()
    torch.nn.init.zeros_(other.cls.weight)
    identities = {
        detection_identity(detector, VIEWS, "a"),
        detection_identity(detector, VIEWS, "b"),
        detection_identity(detector, replace(VIEWS, nms=0.5), "a"),
        detection_identity(other, VIEWS, "a"),
    }
    assert len(identities) == 4
