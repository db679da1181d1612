"""Clues: sums over views at original size, of tagged or predicted classes, from networks and from CLIP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_clip import tiny_clip
from torch import Tensor
from torch.nn import functional

from weakly.errors import UserError
from weakly.foundation.clip import Clip
from weakly.methods.fma.model import manual_prompts
from weakly.methods.fma.seeds import Prompts, SeedMaker
from weakly.methods.fma.settings import ClipEsSettings, FmaSettings
from weakly.methods.weaksam.class_tokens import ClueNetwork, VitSettings
from weakly.methods.weaksam.clue_data import normalised, resized
from weakly.methods.weaksam.clues import (
    ClipEsExtractor,
    Clues,
    ClueSettings,
    NetworkExtractor,
    build_network,
    enlarged,
    min_max,
)
from weakly.vocabulary import Vocabulary

TINY = VitSettings(width=24, depth=3, heads=2, patch=8, image=32)
WEAKTR = ClueSettings(vit=TINY)
MCTFORMER = ClueSettings("mctformer", TINY)
CLASSES = 5
TAGS = np.array([1, 3])


def sharp(settings: ClueSettings) -> ClueNetwork:
    """A fresh network whose encoder has three times larger weights, so that attention is not flat."""
    made = build_network(settings, CLASSES)
    with torch.no_grad():
        for parameter in made.encoder.parameters():
            parameter *= 3 if parameter.ndim > 1 else 1
    return made


@pytest.fixture(scope="module")
def extractor() -> NetworkExtractor:
    return NetworkExtractor(sharp(WEAKTR), WEAKTR)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return tiny_clip()


def picture(height: int = 41, width: int = 55, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def cross_of(clues: Clues, maps: int = 8) -> Tensor:
    return torch.cat([chunk for _, chunk in clues.cross.chunks(maps)])


def view_by_view(network: ClueNetwork, image: NDArray[np.uint8], layers: tuple[int, ...]) -> list[Tensor]:
    """Coarse, fine and raw maps as published: each view enlarged by itself, mirrored back, summed, then normalised."""
    totals: list[Any] = [0, 0, 0]
    for scale in (1.0, 0.8, 1.2):
        for mirrored in (False, True):
            view = normalised(torch.from_numpy(resized(image, scale).transpose(2, 0, 1).copy()))[None]
            maps = network.maps(view.flip(-1) if mirrored else view, layers)
            for place, kind in enumerate((maps.coarse[0], maps.fine[0], maps.raw[0].flatten(0, 1))):
                large = functional.interpolate(kind[None], image.shape[:2], mode="bilinear", align_corners=False)[0]
                totals[place] = totals[place] + (large.flip(-1) if mirrored else large)
    least, most = (
        [total.amin((1, 2), keepdim=True) for total in totals],
        [t.amax((1, 2), keepdim=True) for t in totals],
    )
    return [(t - a) / (b - a + 1e-8) for t, a, b in zip(totals, least, most, strict=True)]


@pytest.mark.parametrize("setting", [WEAKTR, MCTFORMER], ids=["weaktr", "mctformer"])
def test_clues_are_the_normalised_sums_of_six_views(setting: ClueSettings) -> None:
    network, image = sharp(setting), picture()
    clues = NetworkExtractor(network, setting).extract(image, TAGS)
    coarse, fine, raw = view_by_view(network, image, (2, 3))
    assert clues.coarse.shape == clues.fine.shape == (2, 41, 55)
    assert torch.allclose(clues.coarse, coarse[TAGS], atol=1e-4)
    assert torch.allclose(clues.fine, fine[TAGS], atol=1e-4)
    assert len(clues.cross) == 4, "two layers of two heads"
    # The range of attention is small beside its values, which costs digits.
    assert torch.allclose(cross_of(clues), raw.unflatten(0, (4, CLASSES))[:, TAGS], atol=1e-3)
    assert clues.classes.tolist() == [1, 3] and clues.cls_logits.shape == (CLASSES,)


@pytest.mark.parametrize("setting", [WEAKTR, MCTFORMER], ids=["weaktr", "mctformer"])
def test_the_clues_of_a_mirror_image_are_mirrored(setting: ClueSettings) -> None:
    made, image = NetworkExtractor(sharp(setting), replace(setting, scales=(1.0,))), picture()
    plain, mirror = made.extract(image, TAGS), made.extract(np.ascontiguousarray(image[:, ::-1]), TAGS)
    assert torch.allclose(plain.coarse, mirror.coarse.flip(-1), atol=1e-4)
    assert torch.allclose(plain.fine, mirror.fine.flip(-1), atol=1e-4)
    assert torch.allclose(cross_of(plain), cross_of(mirror).flip(-1), atol=1e-3)
    assert not torch.allclose(plain.fine, mirror.fine, atol=1e-2)


def test_maps_are_enlarged_in_chunks_of_any_size(extractor: NetworkExtractor) -> None:
    clues = extractor.extract(picture(), TAGS)
    whole = cross_of(clues, 100)
    assert whole.shape == (4, 2, 41, 55) and len({tuple(view.shape[-2:]) for view in clues.cross.views}) == 3
    for size in (1, 3):
        starts = [first for first, _ in clues.cross.chunks(size)]
        assert starts == list(range(0, 4, size))
        assert torch.allclose(cross_of(clues, size), whole, atol=1e-6)
    assert whole.amin() == 0 and torch.allclose(whole.amax((2, 3)), torch.ones(4, 2), atol=1e-3)


def test_clues_of_some_classes_are_rows_of_the_clues_of_all(extractor: NetworkExtractor) -> None:
    image = picture()
    some, everything = extractor.extract(image, TAGS), extractor.extract(image, np.arange(CLASSES))
    assert torch.allclose(some.coarse, everything.coarse[TAGS], atol=1e-5)
    assert torch.allclose(some.fine, everything.fine[TAGS], atol=1e-5)
    assert torch.allclose(cross_of(some), cross_of(everything)[:, TAGS], atol=1e-4)
    again = extractor.extract(image, np.array([3, 1, 3]))
    assert again.classes.tolist() == [1, 3] and torch.equal(again.fine, some.fine)


def first_views(extractor: NetworkExtractor, image: NDArray[np.uint8]) -> Tensor:
    """(6, C) class logits in the order of the views."""
    with torch.no_grad():
        return torch.cat([extractor.network.maps(pixels).z_cls for pixels in extractor._pixels(image)])


def with_threshold(extractor: NetworkExtractor, threshold: float) -> NetworkExtractor:
    return NetworkExtractor(extractor.network, replace(WEAKTR, test_tag_logit=threshold))


def test_unknown_tags_are_the_classes_that_pass_in_the_first_view(extractor: NetworkExtractor) -> None:
    image = picture()
    upright = first_views(extractor, image)[0]
    threshold = float(upright.sort().values[2:4].mean())
    clues = with_threshold(extractor, threshold).extract(image)
    assert clues.classes.tolist() == (upright > threshold).nonzero().flatten().tolist() and len(clues.classes) == 2
    assert torch.allclose(clues.cls_logits, upright, atol=1e-5)
    given_too = extractor.extract(image, clues.classes.numpy())
    assert torch.equal(clues.fine, given_too.fine)


def test_a_later_view_decides_where_the_first_has_no_class_and_all_views_count(extractor: NetworkExtractor) -> None:
    for seed in range(50):
        image = picture(seed=seed)
        best = first_views(extractor, image).amax(1)
        if best[3] > best[:3].max():
            break
    else:
        pytest.fail("no picture whose mirrored smaller view leads")
    views = first_views(extractor, image)
    threshold = float((best[3] + best[:3].max()) / 2)
    clues = with_threshold(extractor, threshold).extract(image)
    assert clues.classes.tolist() == (views[3] > threshold).nonzero().flatten().tolist() != []
    assert torch.equal(clues.coarse, extractor.extract(image, clues.classes.numpy()).coarse)


@pytest.mark.parametrize("tags", [None, np.zeros(0, np.int64)], ids=["predicted", "given"])
def test_an_image_without_any_class_has_empty_clues(extractor: NetworkExtractor, tags: Any) -> None:
    clues = with_threshold(extractor, 1e6).extract(picture(), tags)
    assert clues.coarse.shape == clues.fine.shape == (0, 41, 55) and len(clues.classes) == 0
    assert cross_of(clues).shape == (4, 0, 41, 55)


def test_a_class_without_any_response_has_maps_of_zeros() -> None:
    network = sharp(WEAKTR)
    with torch.no_grad():
        network.head.bias[3] = -1e6
    clues = NetworkExtractor(network, WEAKTR).extract(picture(), TAGS)
    assert not clues.coarse[1].any() and not clues.fine[1].any()
    assert clues.coarse[0].any() and torch.isfinite(clues.coarse).all() and torch.isfinite(clues.fine).all()
    assert not min_max(torch.full((2, 3, 3), 7.0)).any()


@settings(max_examples=15, deadline=None)
@given(height=st.integers(3, 60), width=st.integers(3, 60))
def test_images_of_any_size_have_maps_of_their_size(height: int, width: int) -> None:
    quick = replace(WEAKTR, scales=(1.0,), long_side=40)
    clues = NetworkExtractor(sharp(quick), quick).extract(picture(height, width), TAGS)
    assert clues.fine.shape == (2, height, width) and torch.isfinite(clues.fine).all()
    assert all(max(view.shape[-2:]) <= 5 for view in clues.cross.views), "40 pixels of patches of 8"


def test_the_identity_knows_weights_and_settings() -> None:
    network = sharp(WEAKTR)
    identities = {
        NetworkExtractor(network, WEAKTR).identity,
        NetworkExtractor(network, replace(WEAKTR, hflip=False)).identity,
        NetworkExtractor(network, replace(WEAKTR, cross_layers=(1,))).identity,
        NetworkExtractor(sharp(replace(WEAKTR, train=replace(WEAKTR.train, seed=1))), WEAKTR).identity,
    }
    assert len(identities) == 4
    assert NetworkExtractor(sharp(WEAKTR), WEAKTR).identity in identities, "and nothing else"


def test_building_a_network_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    build_network(WEAKTR, CLASSES)
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(UserError, match="'clip-es' is not trained; choose weaktr or mctformer"):
        build_network(ClueSettings("clip-es"), CLASSES)


def test_settings_are_published_and_checked() -> None:
    assert ClueSettings().layers == tuple(range(5, 13)) and ClueSettings().scales == (1.0, 0.8, 1.2)
    assert ClueSettings(vit=replace(TINY, depth=6)).layers == (3, 4, 5, 6)
    assert torch.tensor(ClueSettings().test_tag_logit).sigmoid() == pytest.approx(0.378, abs=1e-3)
    for changes, sentence in (
        ({"cross_layers": (4,)}, r"cross_layers is \[4\]; give layers from 1 to vit.depth=3"),
        ({"scales": ()}, "scales is"),
        ({"long_side": 7}, "long_side is 7; give 8 pixels or more"),
    ):
        with pytest.raises(UserError, match=sentence):
            replace(WEAKTR, **changes)


NAMES, BACKGROUNDS = ["cow", "dog", "bus"], ["grass", "tree"]


def test_clip_es_clues_are_those_of_its_seeds(clip: Clip) -> None:
    image, tags = picture(64, 96), np.array([0, 2])
    setting = ClipEsSettings(finish="argmax")
    clues = ClipEsExtractor(clip, NAMES, BACKGROUNDS, setting).extract(image, tags)
    prompts = Prompts(manual_prompts(clip, [*NAMES, *BACKGROUNDS]), "manual")
    for maps, spreading in ((clues.coarse, "none"), (clues.fine, setting.spread)):
        stage = replace(setting, spread=spreading)
        maker = SeedMaker(clip, prompts, Vocabulary.from_names(NAMES), stage, FmaSettings())
        expected = min_max(enlarged(maker.activations(image, tags).clamp(min=0), (64, 96)))
        assert maps.shape == (2, 64, 96) and torch.allclose(maps, expected, atol=1e-4)
    assert len(clues.cross) == 0 and list(clues.cross.chunks()) == []
    assert clues.cls_logits.shape == (3,)


def test_clip_es_needs_tags_which_may_be_none_at_all(clip: Clip) -> None:
    made = ClipEsExtractor(clip, NAMES, BACKGROUNDS)
    with pytest.raises(UserError, match="CLIP-ES cannot tell .* give tags"):
        made.extract(picture())
    clues = made.extract(picture(), np.zeros(0, np.int64))
    assert clues.coarse.shape == clues.fine.shape == (0, 41, 55)
    assert made.identity != ClipEsExtractor(clip, NAMES, BACKGROUNDS, ClipEsSettings(power=1)).identity
