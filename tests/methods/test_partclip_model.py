"""The student of PartCLIPSeg: the efficient formulation against the unfactored one, and what follows from spec 11."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_clipseg import GRID, SIDE, tiny_clipseg
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from partclip_reference import encode_padded, unfactored
from weakly.errors import UserError
from weakly.foundation.clipseg import ClipSeg
from weakly.methods.partclip import feed_forward, inference
from weakly.methods.partclip.inference import (
    all_at_once,
    best_of,
    oracle_obj,
    parts_within,
    pred_all,
    predict_phrases,
)
from weakly.methods.partclip.model import ClipSegBaseline, NameEmbeddings, PartClipSeg
from weakly.methods.partclip.names import PartNames
from weakly.methods.partclip.trunk import VisualAdapter

NAMES = PartNames.from_classes(
    ["dog's head", "dog's body", "fish's tail", "dog's tail", "bird's head", "fish's fin", "bird's wing"]
)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def clipseg() -> ClipSeg:
    return tiny_clipseg()


def student(clipseg: ClipSeg, seed: int = 0, **arguments: str) -> PartClipSeg:
    """A student none of whose copies is still equal to what it was copied from."""
    torch.manual_seed(seed)
    model = PartClipSeg(clipseg, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    return model


def pixels(images: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(images, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("obj_text_index", ["offset", "official"])
def test_every_mask_is_that_of_the_unfactored_formulation(clipseg: ClipSeg, obj_text_index: str) -> None:
    """Checks 3 to 6 at once: taps, truncated texts, one trunk, and index-add in place of concatenation."""
    model, images = student(clipseg, obj_text_index=obj_text_index), pixels()
    with torch.no_grad():
        output = model(clipseg.taps(images), model.encode_names(clipseg, NAMES), chunk=3)
        expected = unfactored(model, clipseg, images, NAMES)
    assert output.class_logits.shape == (2, len(NAMES) + 1, SIDE, SIDE)
    torch.testing.assert_close(output.trunk_logits, expected.trunk_logits, **CLOSE)
    torch.testing.assert_close(output.class_logits, expected.class_logits, **CLOSE)
    assert expected.class_logits.std(1).mean() > 1e-3  # or every mask would be the same


@pytest.mark.parametrize("obj_text_index", ["offset", "official"])
def test_every_gradient_is_that_of_the_unfactored_formulation(clipseg, obj_text_index, monkeypatch) -> None:
    monkeypatch.setitem(feed_forward.HIDDEN_FLOATS, "cpu", 24 * 100)  # feed-forward slices of 100 tokens
    model, images = student(clipseg, obj_text_index=obj_text_index), pixels()
    output = model(clipseg.taps(images), model.encode_names(clipseg, NAMES), chunk=3)
    direction = [torch.randn_like(output.trunk_logits), torch.randn_like(output.class_logits)]

    def gradients(logits: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        model.zero_grad()
        sum((a * b).sum() for a, b in zip(logits, direction, strict=True)).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    ours, theirs = gradients(output[:2]), gradients(unfactored(model, clipseg, images, NAMES)[:2])
    for name, gradient in theirs.items():
        assert gradient.any(), name
        assert (ours[name] - gradient).abs().max() < 1e-3 * gradient.abs().max() + 1e-4, name
    assert not any(parameter.grad is not None for parameter in clipseg.parameters())


def test_the_trunk_is_the_library_decoder_on_each_prompt_alone(clipseg: ClipSeg) -> None:
    """Check 5."""
    model = student(clipseg)
    with torch.no_grad():
        taps, names = clipseg.taps(pixels()), model.encode_names(clipseg, NAMES)
        logits = model(taps, names).trunk_logits
        adapted = tuple(model.adapter(taps).unbind(1))
        for prompt in range(names.prompts):
            alone = model.decoder(adapted, names.embeddings[prompt].expand(2, -1)).logits
            torch.testing.assert_close(logits[:, prompt], alone, **CLOSE)


def test_prompts_are_bare_words_in_order_and_the_background_vector(clipseg: ClipSeg) -> None:
    model = student(clipseg)
    names = model.encode_names(clipseg, NAMES)
    assert (names.parts, names.objects, names.prompts, names.classes) == (5, 3, 9, 7)
    expected = encode_padded(model, clipseg, ["body", "fin", "head", "tail", "wing", "bird", "dog", "fish"])
    torch.testing.assert_close(names.embeddings, expected, **CLOSE)
    assert names.part_prompt.tolist() == [2, 0, 3, 3, 2, 1, 4, 8]
    assert names.object_prompt.tolist() == [6, 6, 7, 6, 5, 7, 5, 8]
    assert names.object_of.tolist() == [1, 1, 2, 1, 0, 2, 0, 3]


def test_official_text_index_is_wrong_unless_parts_and_objects_share_their_texts(clipseg: ClipSeg) -> None:
    """Check 6: the release takes a part's embedding for the object's (D1)."""
    offset, official = (student(clipseg, obj_text_index=kind) for kind in ("offset", "official"))
    with torch.no_grad():
        taps, names = clipseg.taps(pixels()), offset.encode_names(clipseg, NAMES)
        assert (offset(taps, names).class_logits - official(taps, names).class_logits).abs().max() > 1e-2
        shared = names.embeddings.clone()
        shared[:3] = shared[5:8]
        names = replace(names, embeddings=shared)
        assert torch.equal(offset(taps, names).class_logits, official(taps, names).class_logits)


@pytest.mark.parametrize("obj_text_index", ["offset", "official"])
def test_the_order_of_part_prompts_matters_only_in_the_release(clipseg: ClipSeg, obj_text_index: str) -> None:
    """Check 7."""
    model = student(clipseg, obj_text_index=obj_text_index)
    order = torch.tensor([3, 0, 4, 1, 2, 5, 6, 7, 8])
    with torch.no_grad():
        taps, names = clipseg.taps(pixels()), model.encode_names(clipseg, NAMES)
        shuffled = replace(names, embeddings=names.embeddings[order], part_prompt=order.argsort()[names.part_prompt])
        before, after = model(taps, names), model(taps, shuffled)
    torch.testing.assert_close(after.trunk_logits, before.trunk_logits[:, order], **CLOSE)
    difference = (after.class_logits - before.class_logits).abs().max()
    assert difference < 1e-5 if obj_text_index == "offset" else difference > 1e-2


def test_new_modules_start_as_the_checkpoint_or_as_a_mean(clipseg: ClipSeg) -> None:
    """Check 2, initialisation, and the suggested start of spec section 1.8."""
    for composition in ("average", "random"):
        model = PartClipSeg(clipseg, composition=composition)
        for new, old in (
            (model.head, model.decoder.transposed_convolution),
            (model.cond_film_mul, model.decoder.film_mul),
            (model.cond_film_add, model.decoder.film_add),
        ):
            for ours, theirs in zip(new.parameters(), old.parameters(), strict=True):
                assert torch.equal(ours, theirs)
                assert ours is not theirs
        assert not model.combine_features.bias.any()
        assert not model.combine_texts.bias.any()
    a, b = torch.randn(2, 5, clipseg.reduce_dim)
    mean = PartClipSeg(clipseg).combine_features(torch.cat([a, b], 1))
    torch.testing.assert_close(mean, (a + b) / 2)


def test_what_trains(clipseg: ClipSeg) -> None:
    """Spec section 1.9: everything the student holds, the background vector unless it is frozen as released (D10)."""
    learned, frozen = (PartClipSeg(clipseg, background_vector=kind) for kind in ("learned", "frozen"))
    assert all(parameter.requires_grad for parameter in learned.parameters())
    assert [name for name, parameter in frozen.named_parameters() if not parameter.requires_grad] == ["background"]
    assert "background" in frozen.state_dict()
    assert abs(frozen.background.std().item() * clipseg.joint_width**0.5 - 1) < 0.7
    assert {type(model) for model in frozen.modules() if isinstance(model, nn.Embedding)} == {nn.Embedding}


def full_size() -> ClipSeg:
    """``CIDAS/clipseg-rd64-refined`` without its weights."""
    config = CLIPSegConfig(vision_config={"patch_size": 16}, use_complex_transposed_convolution=True)
    with torch.device("meta"):
        return ClipSeg(CLIPSegForImageSegmentation(config), None, "meta")


def test_full_size_has_the_published_numbers_of_parameters() -> None:
    """Check 2: 152,355,203 in all (Table A4), of which the release trains 27,427,202."""
    clipseg = full_size()
    with torch.device("meta"):
        model = PartClipSeg(clipseg, background_vector="frozen")

    def size(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    branch = (model.combine_features, model.combine_texts, model.cond_film_mul, model.cond_film_add, model.head)
    assert size(model.adapter) == 294_912
    assert size(model.token_embedding) + size(model.position_embedding) == 25_336_320
    assert size(model.decoder) + sum(map(size, branch)) == 1_795_970
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == 27_427_202
    assert size(model) == trained + 512
    towers = size(clipseg.model.clip) - size(clipseg.model.clip.text_model.embeddings)  # the student has its own
    text_adapter, tunable_linear = 131_072, 512_000  # dead in the release, not built here (D14)
    assert towers + size(model) + text_adapter + tunable_linear == 152_355_203
    with torch.device("meta"):
        baseline = ClipSegBaseline(clipseg, background_vector="frozen")
    assert round((towers + size(baseline) + text_adapter + tunable_linear) / 1e6, 1) == 151.7


def test_an_adapter_that_adds_nothing_keeps_four_fifths() -> None:
    """Check 3."""
    adapter, tokens = VisualAdapter(16), torch.randn(2, 3, 5, 16)
    nn.init.zeros_(adapter.up.weight)
    torch.testing.assert_close(adapter(tokens), 0.8 * tokens)
    assert [tuple(parameter.shape) for parameter in adapter.parameters()] == [(4, 16), (16, 4)]


def test_some_classes_are_those_of_all(clipseg: ClipSeg) -> None:
    model, wanted = student(clipseg), torch.tensor([5, 0, 7])
    with torch.no_grad():
        taps, names = clipseg.taps(pixels()), model.encode_names(clipseg, NAMES)
        every = model(taps, names).class_logits
        torch.testing.assert_close(model(taps, names, wanted).class_logits, every[:, wanted], **CLOSE)


def test_masks_of_prompts_that_were_not_run_are_an_error(clipseg: ClipSeg) -> None:
    model = student(clipseg)
    with torch.no_grad():
        names, prompts = model.encode_names(clipseg, NAMES), torch.tensor([2, 6])
        reduced = model.reduce(clipseg.taps(pixels()))
        decoded = model.compose(model.run(reduced, names.embeddings[prompts]), names, prompts)
        assert model.class_logits(decoded, torch.tensor([0])).shape == (2, 1, SIDE, SIDE)  # dog's head
        with pytest.raises(IndexError):
            model.class_logits(decoded, torch.tensor([1]))


def test_a_decoder_conditioned_later_is_refused(clipseg: ClipSeg) -> None:
    other = tiny_clipseg()
    other.model.decoder.conditional_layer = 1
    with pytest.raises(UserError, match="conditional_layer 0"):
        PartClipSeg(other)


# Inference (spec section 5, check 13)


def dense(model: PartClipSeg, taps: Tensor, names: NameEmbeddings, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Sigmoids of all upsampled objects | background and classes | background: (N_o + 1, H, W), (K + 1, H, W)."""
    output = model(taps, names)
    large = [
        functional.interpolate(logits, size, mode="bilinear", align_corners=False)[0].double().sigmoid()
        for logits in (output.trunk_logits[:, names.parts :], output.class_logits)
    ]
    return large[0], large[1]


def released_pred_all(objects: Tensor, classes: Tensor, names: PartNames) -> Tensor:
    """Every class times whether its object is the best one, then the best class."""
    best = objects.argmax(0)
    owners = torch.tensor([*names.object_of, len(names.objects)])
    return (classes * (best == owners[:, None, None])).argmax(0)


def scene(clipseg: ClipSeg, seed: int) -> tuple[PartClipSeg, Tensor, NameEmbeddings]:
    """Weights that let several objects and the background win somewhere in an image."""
    model = student(clipseg, seed)
    with torch.no_grad():
        for head in (model.head, model.decoder.transposed_convolution):
            for layer in head[::2]:
                layer.weight *= 3
        return model, clipseg.taps(pixels(1, seed)), model.encode_names(clipseg, NAMES)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [(96, 96), (37, 90), (1, 5)])
def test_pred_all_is_the_released_rule_with_nothing_pruned(clipseg, seed, size, monkeypatch) -> None:
    monkeypatch.setattr(inference, "PROMPTS_AT_ONCE", 2)
    model, taps, names = scene(clipseg, seed)
    with torch.no_grad():
        objects, classes = dense(model, taps, names, size)
    expected = released_pred_all(objects, classes, NAMES)
    found = pred_all(model, taps, names, size, chunk=2)
    assert found.labels.dtype == torch.int64
    agree = found.labels == expected
    assert agree.float().mean() > 0.999  # a float32 tie may fall either way
    score = torch.where(expected < len(NAMES), classes.gather(0, expected[None])[0], objects[-1])
    torch.testing.assert_close(found.scores[agree], score[agree].float(), **CLOSE)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_a_background_with_a_threshold_answers_for_itself(clipseg, seed, threshold) -> None:
    model, taps, names = scene(clipseg, seed)
    with torch.no_grad():
        objects, classes = dense(model, taps, names, (37, 90))
    nothing = objects[-1] > threshold
    expected = released_pred_all(torch.cat([objects[:-1], torch.where(nothing, 2.0, -1.0)[None]]), classes, NAMES)
    found = pred_all(model, taps, names, (37, 90), chunk=2, background_above=threshold)
    agree = found.labels == expected
    assert agree.float().mean() > 0.999  # a float32 tie may fall either way
    assert ((found.labels == len(NAMES)) == nothing)[agree].all()
    score = torch.where(nothing, objects[-1], classes.gather(0, expected[None])[0])
    torch.testing.assert_close(found.scores[agree], score[agree].float(), **CLOSE)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("threshold", [None, 0.5])
def test_all_at_once_is_the_best_class_or_background(clipseg, seed, threshold, monkeypatch) -> None:
    monkeypatch.setattr(inference, "PROMPTS_AT_ONCE", 3)
    model, taps, names = scene(clipseg, seed)
    with torch.no_grad():
        logits = model(taps, names).class_logits
    masks = functional.interpolate(logits, (37, 90), mode="bilinear", align_corners=False)[0].sigmoid()
    rivals = masks if threshold is None else torch.cat([masks[:-1], 2.0 * (masks[-1:] > threshold)])
    found = all_at_once(model, taps, names, (37, 90), chunk=2, background_above=threshold)
    agree = found.labels == rivals.argmax(0)
    assert agree.float().mean() > 0.999  # a float32 tie may fall either way
    assert 0 < agree[found.labels == len(NAMES)].sum() < agree.sum()
    own = masks.gather(0, found.labels[None])[0]
    torch.testing.assert_close(found.scores, own, **CLOSE)


def test_some_image_shows_several_objects_and_background(clipseg: ClipSeg) -> None:
    """So that the tests above compare more than one answer."""
    maps = [pred_all(*scene(clipseg, seed), (96, 96)).labels for seed in range(4)]
    assert len(set(torch.cat(maps).unique().tolist())) > 3
    assert any(len(labels.unique()) > 2 for labels in maps)


@pytest.mark.parametrize("objects", [[0], [1], [2, 0], [0, 1, 2]])
def test_oracle_obj_is_the_best_class_of_the_objects(clipseg: ClipSeg, objects: list[int]) -> None:
    model, taps, names = scene(clipseg, 1)
    with torch.no_grad():
        classes = dense(model, taps, names, (50, 40))[1]
    allowed = [k for k, owner in enumerate(NAMES.object_of) if owner in objects]
    expected = torch.tensor(allowed)[classes[allowed].argmax(0)]
    found = oracle_obj(model, taps, names, (50, 40), objects)
    assert (found.labels == expected).float().mean() > 0.999
    torch.testing.assert_close(found.scores, classes[allowed].amax(0).float(), **CLOSE)


def test_oracle_without_objects_is_background(clipseg: ClipSeg) -> None:
    found = oracle_obj(*scene(clipseg, 1), (5, 4), [])
    assert found.labels.tolist() == [[len(NAMES)] * 4] * 5
    assert not found.scores.any()


def test_parts_within_a_map_are_the_oracles_of_its_objects(clipseg: ClipSeg) -> None:
    model, taps, names = scene(clipseg, 2)
    object_map = torch.tensor([0, 2, 3]).repeat_interleave(20)[:, None].expand(60, 45)
    found = parts_within(model, taps, names, object_map)
    for owner in (0, 2):
        alone, there = oracle_obj(model, taps, names, (60, 45), [owner]), object_map == owner
        assert torch.equal(found.labels[there], alone.labels[there])
        torch.testing.assert_close(found.scores[there], alone.scores[there], **CLOSE)
    assert (found.labels[object_map == 3] == len(NAMES)).all()
    nothing = parts_within(model, taps, names, torch.full((4, 4), 3))
    assert (nothing.labels == len(NAMES)).all()


def test_only_parts_of_objects_found_are_run(clipseg: ClipSeg, monkeypatch: pytest.MonkeyPatch) -> None:
    model, taps, names = scene(clipseg, 2)
    run, prompts = model.run, []
    monkeypatch.setattr(
        model, "run", lambda reduced, embeddings: prompts.append(len(embeddings)) or run(reduced, embeddings)
    )
    parts_within(model, taps, names, torch.zeros(8, 8, dtype=torch.int64))
    assert prompts == [3]  # bird, head, wing: of nine prompts


def test_the_best_of_chunks_is_the_best_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(1, 11, 8, 8)
    large = functional.interpolate(logits, (20, 30), mode="bilinear", align_corners=False)[0]
    allowed = torch.rand(11, 20, 30) > 0.8
    gated = large.masked_fill(~allowed, -torch.inf)
    expected = torch.where(allowed.any(0), gated.argmax(0), 11)
    for pixels_at_once in (2**25, 20 * 30 * 2, 1):
        monkeypatch.setattr(inference, "PIXELS_AT_ONCE", pixels_at_once)
        found = best_of(
            lambda part: logits[:, part],
            torch.arange(11),
            (20, 30),
            4,
            allowed=lambda part: allowed[part],
            otherwise=11,
        )
        assert torch.equal(found.labels, expected)
        torch.testing.assert_close(found.scores, gated.amax(0).sigmoid())


# The baseline (spec section 9)


def test_the_baseline_asks_for_phrases(clipseg: ClipSeg) -> None:
    torch.manual_seed(0)
    model = ClipSegBaseline(clipseg)
    with torch.no_grad():
        taps, names = clipseg.taps(pixels(1)), model.encode_names(clipseg, NAMES)
        phrases = ["dog head", "dog body", "fish tail", "dog tail", "bird head", "fish fin", "bird wing"]
        torch.testing.assert_close(names, encode_padded(model, clipseg, phrases), **CLOSE)
        logits = model(taps, names, chunk=3)
        adapted = tuple(model.adapter(taps).unbind(1))
        for row, embedding in enumerate(names):
            torch.testing.assert_close(logits[:, row], model.decoder(adapted, embedding[None]).logits, **CLOSE)
    large = functional.interpolate(logits, (30, 50), mode="bilinear", align_corners=False)[0]
    assert torch.equal(predict_phrases(model, taps, names, (30, 50), chunk=3).labels, large.argmax(0))
    nothing = large[-1] > 0
    half = predict_phrases(model, taps, names, (30, 50), chunk=3, background_above=0.5).labels
    assert torch.equal(half, torch.where(nothing, len(NAMES), large[:-1].argmax(0)))
    dog = torch.tensor([0, 1, 3])
    oracle = predict_phrases(model, taps, names, (30, 50), dog)
    assert torch.equal(oracle.labels, dog[large[dog].argmax(0)])


def test_grid_of_the_tiny_model(clipseg: ClipSeg) -> None:
    assert clipseg.grid == GRID
