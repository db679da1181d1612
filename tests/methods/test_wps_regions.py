"""The prompter of regions: regions, the parts they lie on, its loss, and which of them ask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import quiet_trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_segmenter import rectangle_dataset, tiny_sam_folder
from torchvision.ops import box_iou

from weakly.errors import UserError
from weakly.methods.base import Workspace
from weakly.methods.optimisation import Optimisation
from weakly.methods.wps import METHOD, frozen_segmenter
from weakly.methods.wps.region_learner import RegionLearner, build_region_prompter, truth_of
from weakly.methods.wps.region_losses import region_loss
from weakly.methods.wps.regions import Answers, Pyramid, RegionPrompter, Sampled
from weakly.methods.wps.settings import RegionSettings, WpsSettings
from weakly.methods.wps.targets import WpsBatch, WpsData
from weakly.vocabulary import Vocabulary

C, T, D, SIDE = 3, 2, 4, 64
VOCABULARY = Vocabulary.from_names(("Red", "Green", "Blue"))


def tiny_prompter(**changes: Any) -> RegionPrompter:
    torch.manual_seed(0)
    sizes = {"embedding_channels": 8, "grid": (8, 8), "side": SIDE, "token_width": D, "classes": C, "tokens": T}
    return RegionPrompter(**{**sizes, "width": 16, "hidden": 32, "proposals": 30, "rois": 12, **changes})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[WpsSettings, WpsData]:
    folder = tmp_path_factory.mktemp("anchors")
    chosen = WpsSettings(
        segmenter=str(tiny_sam_folder(folder / "sam")),
        prompter="regions",
        lambda_box=1.0,
        regions=RegionSettings(width=16, hidden=64, pre_nms=60, proposals=40, rois=24),
    )
    dataset = rectangle_dataset(folder / "images", 8)
    return chosen, METHOD.prepare(chosen, dataset, Workspace(folder / "run", folder / "features"))


def learner_of(chosen: WpsSettings) -> RegionLearner:
    torch.manual_seed(0)
    optimisation = Optimisation(lr=2e-3, optimizer="adamw", warmup_steps=0, schedule="constant")
    return METHOD.learner(chosen, VOCABULARY, optimisation, 100)


def test_the_pyramid_averages_cells_and_keeps_the_finest(prepared: tuple[WpsSettings, WpsData]) -> None:
    features = tiny_prompter().pyramid(torch.randn(2, 8, 8, 8))
    assert {name: tuple(level.shape) for name, level in features.items()} == {
        "0": (2, 16, 8, 8),
        "1": (2, 16, 4, 4),
        "2": (2, 16, 2, 2),
        "3": (2, 16, 1, 1),
    }


def test_positions_can_start_as_the_segmenters_own_tokens_of_the_cells(
    prepared: tuple[WpsSettings, WpsData],
) -> None:
    segmenter = frozen_segmenter(prepared[0].segmenter)
    zeros, tokens = (
        build_region_prompter(replace(prepared[0], position=position), C, segmenter).pyramid.position
        for position in ("zeros", "tokens")
    )
    assert not zeros.any()
    corners = segmenter.point_tokens(torch.tensor([[4.0, 4.0], [12.0, 4.0]]))[:, 0]
    assert torch.allclose(tokens[0, :, 0, 1] - tokens[0, :, 0, 0], (corners[1] - corners[0])[:16], atol=1e-5)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), counts=st.lists(st.integers(0, 4), min_size=1, max_size=3))
def test_sampled_regions_lie_on_the_part_they_are_compared_with(seed: int, counts: list[int]) -> None:
    """IoU of 0.5 or more with that part, or with none; every true box may be among the regions."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(sum(counts), 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + 4 + torch.rand(sum(counts), 2, generator=generator) * 20], 1).split(counts)
    labels = torch.randint(C, (sum(counts),), generator=generator).split(counts)
    truth = [{"boxes": box, "labels": label + 1} for box, label in zip(boxes, labels, strict=True)]
    shifted = [
        torch.cat([box + torch.randn(box.shape, generator=generator), torch.tensor([[0.0, 0, 60, 60]])])
        for box in boxes
    ]
    model = tiny_prompter()
    sampled = model.sample([roi.clone() for roi in shifted], truth)
    flat = torch.cat(sampled.rois)
    assert len(flat) == len(sampled.image) == len(sampled.label) == len(sampled.offsets)
    assert torch.isfinite(sampled.offsets).all()
    back = model.regions.box_coder.decode_single(sampled.offsets, flat)
    for roi, image, label, instance, box in zip(
        flat, sampled.image.tolist(), sampled.label.tolist(), sampled.instance.tolist(), back, strict=True
    ):
        overlaps = box_iou(roi[None], boxes[image])[0]
        if label == C:
            assert not (overlaps >= 0.5).any()
            continue
        assert overlaps[instance] == overlaps.max() >= 0.5
        assert label == labels[image][instance]
        assert torch.allclose(box, boxes[image][instance], atol=1e-3)


def two_images() -> tuple[Sampled, torch.Tensor]:
    """Three regions on the one part of image 0, one on the second part of image 1, two on nothing."""
    sampled = Sampled(
        rois=[torch.zeros(4, 4), torch.zeros(2, 4)],
        image=torch.tensor([0, 0, 0, 0, 1, 1]),
        label=torch.tensor([1, 1, 1, C, 2, C]),
        instance=torch.tensor([0, 0, 0, 0, 1, 0]),
        offsets=torch.zeros(6, 4),
    )
    return sampled, torch.randn(2, 2, T, D, generator=torch.Generator().manual_seed(0))


def test_every_image_weighs_the_same_in_the_token_loss() -> None:
    """Worked example: errors of 0.5 (three regions) and of 1 (one region) average to (0.125 + 0.5) / 2."""
    sampled, teacher = two_images()
    tokens = teacher[sampled.image, sampled.instance].clone()
    tokens[:3] += 0.5
    tokens[4] += 1.0
    tokens[3] += 7.0  # on nothing: not compared
    offsets = torch.zeros(6, 4)
    offsets[0] = 1.0  # 4 * (1 - 1/18), of six regions
    offsets[5] = 9.0
    answers = Answers(torch.zeros(6, C + 1), offsets, tokens)
    loss = region_loss(
        answers, sampled, teacher, torch.tensor(0.3), torch.tensor(0.1), lambda_cls=5, lambda_reg=20, lambda_box=3
    )
    assert loss.regression.item() == pytest.approx((0.125 + 0.5) / 2, abs=1e-6)
    assert loss.classification.item() == pytest.approx(torch.tensor(4.0).log().item(), abs=1e-6)
    assert loss.offsets.item() == pytest.approx(4 * (1 - 1 / 18) / 6, abs=1e-6)
    expected = 5 * loss.classification + 20 * loss.regression + 3 * loss.offsets + 0.4
    assert loss.total.item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_batch_without_any_part_trains_classes_alone() -> None:
    sampled = Sampled(
        [torch.zeros(2, 4)], torch.zeros(2).long(), torch.full((2,), C), torch.zeros(2).long(), torch.zeros(2, 4)
    )
    answers = Answers(*(torch.randn(2, *shape, requires_grad=True) for shape in ((C + 1,), (4,), (T, D))))
    zero = torch.tensor(0.0)
    loss = region_loss(answers, sampled, torch.zeros(1, 0, T, D), zero, zero, lambda_cls=1, lambda_reg=1)
    loss.total.backward()
    assert (loss.regression, loss.offsets) == (0, 0)
    assert answers.logits.grad.any()
    assert not answers.tokens.grad.any()
    assert not answers.offsets.grad.any()


def test_the_best_region_of_a_part_asks_and_its_rivals_do_not() -> None:
    """Suppression is within a category and an image; background regions never ask; the best come first."""
    model = tiny_prompter(nms=0.5, detections=2)
    box, near, far = [8.0, 8, 24, 24], [9.0, 9, 25, 25], [40.0, 40, 56, 56]
    rois = [torch.tensor([box, near, near, far, far]), torch.tensor([box]), torch.zeros(0, 4)]
    logits = torch.tensor(
        [
            [4.0, 0, 0, 0],  # Red, suppressed by the next
            [5.0, 0, 0, 0],  # Red: asks
            [0.0, 6, 0, 0],  # Green at the same place: asks, and first
            [0.0, 0, 0, 9],  # no part
            [3.0, 0, 0, 0],  # Red elsewhere: one more than may ask
            [2.0, 0, 0, 0],  # Red in another image: asks
        ]
    )
    tokens = torch.arange(6.0).view(6, 1, 1).expand(6, T, D)
    prompts = model.select(Answers(logits, torch.zeros(6, 4), tokens), rois)
    assert prompts.logits.shape == (3, 2, C + 1)
    assert prompts.tokens[:, :, 0, 0].tolist() == [[2, 1], [5, 0], [0, 0]]
    assert torch.equal(prompts.logits[0], logits[[2, 1]])
    no_part = prompts.logits.softmax(-1)[..., C]
    assert (no_part == 1).tolist() == [[False, False], [False, True], [True, True]]


def test_suppression_looks_at_the_moved_boxes() -> None:
    """Two regions far apart whose offsets lead to one place are one part."""
    model = tiny_prompter()
    rois = torch.tensor([[0.0, 0, 16, 16], [16.0, 0, 32, 16]])
    offsets = torch.zeros(2, 4)
    offsets[1, 0] = -10.0  # one width to the left, in torchvision's coding
    logits = torch.tensor([[2.0, 0, 0, 0], [3.0, 0, 0, 0]])
    prompts = model.select(Answers(logits, offsets, torch.zeros(2, T, D)), [rois])
    assert torch.equal(prompts.logits, logits[1].view(1, 1, -1))


def test_small_regions_are_pooled_from_fine_levels() -> None:
    """Sides of up to 1.4 times a level's anchors (4, 8, 16, 32 pixels here) belong to that level."""
    model = tiny_prompter()
    model.examine(model.pyramid(torch.randn(1, 8, 8, 8)), [torch.tensor([[0.0, 0, 8, 8]])])
    sides = torch.tensor([3.0, 5, 6, 11, 12, 22, 23, 60])
    levels = model.pool.map_levels([torch.stack([sides * 0, sides * 0, sides, sides], 1)])
    assert levels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_a_cell_of_a_region_is_the_mean_of_its_samples(samples: int) -> None:
    """Between the cells of a map, whose 0 and 1 are 8 pixels apart: a ramp of squares is not its own mean."""
    model = tiny_prompter(samples=samples)
    squares = {name: (torch.arange(8.0) ** 2).expand(1, 1, 8, 8) for name in Pyramid.LEVELS}
    (pooled,) = model.pool(squares, [torch.tensor([[0.0, 0, 56, 56]])], [(SIDE, SIDE)])
    places = (torch.arange(7 * samples) + 0.5) / samples
    low = places.floor()
    values = low**2 + (places - low) * (2 * low + 1)
    assert torch.allclose(pooled[0, 0], values.view(7, samples).mean(1), atol=1e-4)


def test_true_boxes_come_from_the_batch_in_torchvisions_form() -> None:
    prompts = torch.arange(24.0).view(2, 2, 6)
    batch = WpsBatch(torch.zeros(2, 1, 1, 1), torch.tensor([[2, 0], [1, 0]]), torch.zeros(2, 2, T, D), prompts, (2, 1))
    first, second = truth_of(batch)
    assert first["boxes"].tolist() == [[0, 1, 2, 3], [6, 7, 8, 9]]
    assert first["labels"].tolist() == [3, 1]
    assert (second["boxes"].tolist(), second["labels"].tolist()) == ([[12, 13, 14, 15]], [2])


def test_it_learns(prepared: tuple[WpsSettings, WpsData], tmp_path: Path) -> None:
    chosen, data = prepared
    learner = learner_of(chosen)
    torch.manual_seed(0)
    before = learner.loss(data.__getitems__(list(range(8))))
    loader = learner.loader(data, batch_size=8, shuffle=True, seed=7)
    quiet_trainer(tmp_path, max_epochs=25).fit(learner, loader)
    after = learner.loss(data.__getitems__(list(range(8))))
    assert after.total < 0.7 * before.total
    assert after.regression < 0.9 * before.regression


def test_validation_is_the_same_every_time_and_leaves_randomness_alone(
    prepared: tuple[WpsSettings, WpsData], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although regions are sampled."""
    learner, batch = learner_of(prepared[0]), prepared[1].__getitems__(list(range(8)))
    logged: list[dict[str, Any]] = []
    monkeypatch.setattr(learner, "log_dict", lambda values, **_: logged.append(values))
    learner.eval()
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        with torch.no_grad():
            learner.validation_step(batch, 0)
        assert torch.equal(torch.get_rng_state(), state)
    assert logged[0] == logged[1]
    names = ("loss", "classification", "regression", "offsets", "objectness", "proposal")
    assert set(logged[0]) == {f"val/{name}" for name in names}


def test_a_student_of_another_segmenter_is_refused(prepared: tuple[WpsSettings, WpsData], tmp_path: Path) -> None:
    learner = learner_of(prepared[0])
    learner.settings = replace(prepared[0], segmenter=str(tiny_sam_folder(tmp_path / "other", seed=1)))
    METHOD.save(learner, tmp_path / "student", {})
    with pytest.raises(UserError, match="was trained on segmenter"):
        METHOD.load(tmp_path / "student", Workspace(tmp_path, tmp_path))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompter", "anchors"),
        ("supervision", "point"),
        ("lambda_box", 0.0),
        ("aux_weight", 1.0),
        ("gamma", 2.0),
        ("lambda_mask", 1.0),
        ("score_threshold", 2.0),
    ],
)
def test_impossible_settings_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"settings.{field}"):
        WpsSettings(**{"prompter": "regions", "lambda_box": 1.0, field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rois", 0),
        ("looks", 0),
        ("samples", 0),
        ("anchors", (0.1, 0.2, 0.3, 0.2)),
        ("anchors", (0.0, 0.1, 0.2, 0.3)),
        ("ratios", ()),
        ("nms", 1.5),
    ],
)
def test_impossible_sizes_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"regions.{field}"):
        RegionSettings(**{field: value})


def test_regions_answer_with_their_moved_boxes() -> None:
    """In shares of the frame, centre and size; beyond the frame they are cut."""
    model = tiny_prompter()
    rois = torch.tensor([[0.0, 0, 16, 16], [48.0, 32, 64, 64]])
    offsets = torch.tensor(
        [[10.0, 0, 0, 0], [5.0, 0, 0, 0]]
    )  # one width to the right, and half a one, in torchvision's coding
    logits = torch.tensor([[3.0, 0, 0, 0], [2.0, 0, 0, 0]])
    prompts = model.select(Answers(logits, offsets, torch.zeros(2, T, D)), [rois])
    assert prompts.boxes is not None
    assert torch.allclose(prompts.boxes[0] * SIDE, torch.tensor([[24.0, 8, 16, 16], [60, 48, 8, 32]]), atol=1e-4)


def test_every_look_begins_where_the_last_one_moved_the_regions() -> None:
    """Four pixels to the right per look of a student that says so of regions 16 pixels wide, up to the frame."""
    embeddings, last = torch.randn(1, 8, 8, 8), {}
    for looks in (1, 2, 3):
        model = tiny_prompter(looks=looks)
        model.propose = lambda *_: ([torch.tensor([[8.0, 8, 24, 24], [42.0, 8, 58, 24]])], {})  # type: ignore[method-assign, assignment]
        with torch.no_grad():
            model.box_head.weight.zero_()
            model.box_head.bias.copy_(torch.tensor([2.5, 0, 0, 0]))  # a quarter of the width, in torchvision's coding
            model.class_head.weight.zero_()
            model.class_head.bias.copy_(torch.tensor([5.0, 0, 0, 0]))
            boxes = model(embeddings).boxes
        assert boxes is not None
        last[looks] = sorted((boxes[0, :, 0] * SIDE).tolist())
    assert last[1] == pytest.approx([20, 54])
    assert last[2] == pytest.approx([24, 57])  # 50..66 is cut to 50..64
    assert last[3][0] == pytest.approx(28)
