"""Proposals as crops: what a frozen CLIP says of each box alone, made once, and a detector that learns from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_clip import tiny_clip
from tiny_segmenter import tiny_sam_folder
from tiny_weaksam import tagged_objects, tiny_settings
from tiny_wsod import TAGS, TRAINING, tiny_boxes, tiny_image, tiny_proposals
from torchvision.ops import box_iou

from weakly.errors import UserError
from weakly.foundation.clip import Clip, normalise
from weakly.methods.base import Workspace
from weakly.methods.weaksam import METHOD, crop_store, wsod_crops
from weakly.methods.weaksam.crop_store import CropStore
from weakly.methods.weaksam.settings import WeakSamSettings
from weakly.methods.weaksam.wsod import WsodDetector, build_detector
from weakly.methods.weaksam.wsod_clip import CropBody
from weakly.methods.weaksam.wsod_crops import CropSettings, embed_crops, windows
from weakly.methods.weaksam.wsod_data import WsodData, mirror
from weakly.methods.weaksam.wsod_inference import WsodInference, detect, score_rois
from weakly.methods.weaksam.wsod_settings import WsodSettings, oicr_settings
from weakly.methods.weaksam.wsod_training import WsodFiles, load_detector, train_detector

TIGHT = CropSettings(margin=0.0, side=32)
ONE_VIEW = WsodInference((48,), 96, flip=False)


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.set_num_threads(1)
    return tiny_clip()


@pytest.fixture(scope="module")
def folder(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    clip.model.save_pretrained(path)
    clip.tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def settings(folder: Path) -> WsodSettings:
    own = WsodSettings(backbone="crops", weights=str(folder), crops=TIGHT, drop_block=None, width=64, dropout=0.1)
    return oicr_settings(own)


def boxes_of(*rows: tuple[float, float, float, float]) -> NDArray[np.float32]:
    return np.array(rows, np.float32)


# --- crops


def test_the_crop_of_a_whole_image_is_the_image(clip: Clip) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    found = embed_crops(clip, image, boxes_of((0, 0, 32, 32)), TIGHT)
    assert found.shape == (1, clip.joint_width)
    np.testing.assert_allclose(found, clip.image_features(normalise(image[None])).numpy(), rtol=1e-4, atol=1e-5)


def test_a_crop_knows_its_box_its_margin_and_nothing_else(clip: Clip) -> None:
    image, boxes = tiny_image(0), boxes_of((20, 10, 40, 30))
    near, far = image.copy(), image.copy()
    near[10:30, 41] = 255  # in the margin of a tenth, 2 pixels
    far[:, 44:] = 255
    for margin, changed in ((0.0, far), (0.1, far), (0.0, near)):
        own = replace(TIGHT, margin=margin)
        np.testing.assert_array_equal(embed_crops(clip, image, boxes, own), embed_crops(clip, changed, boxes, own))
    wide = replace(TIGHT, margin=0.1)
    assert not np.allclose(embed_crops(clip, image, boxes, wide), embed_crops(clip, near, boxes, wide))


def test_windows_grow_on_every_side() -> None:
    grown = windows(torch.tensor([[10.0, 20, 30, 60]]), 0.25)
    assert grown.tolist() == [[5, 10, 35, 70]]


def test_beyond_the_image_is_the_mean_colour(clip: Clip) -> None:
    grey = np.full((64, 96, 3), 128, np.uint8)
    outside = embed_crops(clip, grey, boxes_of((200, 200, 232, 232)), TIGHT)
    nothing = clip.image_features(torch.zeros(1, 3, 32, 32))
    np.testing.assert_allclose(outside, nothing.numpy(), rtol=1e-4, atol=1e-5)


def test_mirrored_crops_are_those_of_the_mirrored_image(clip: Clip) -> None:
    image, boxes = tiny_image(2), tiny_proposals(2)
    turned = mirror(torch.from_numpy(boxes), 64).numpy()
    expected = embed_crops(clip, np.ascontiguousarray(image[:, ::-1]), turned, CropSettings(0.1, 32))
    found = embed_crops(clip, image, boxes, CropSettings(0.1, 32), mirrored=True)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_crops_do_not_depend_on_what_is_embedded_with_them(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    image, boxes = tiny_image(1), tiny_proposals(1)
    whole = embed_crops(clip, image, boxes, TIGHT)
    monkeypatch.setattr(wsod_crops, "AT_ONCE", 3)
    np.testing.assert_allclose(embed_crops(clip, image, boxes, TIGHT), whole, rtol=1e-4, atol=1e-5)


def test_wrong_settings_name_their_remedy(clip: Clip) -> None:
    with pytest.raises(UserError, match=r"side is 40, no multiple of the patch of CLIP 'tiny', 16; give 32"):
        embed_crops(clip, tiny_image(0), tiny_proposals(0), replace(TIGHT, side=40))
    for wrong in ({"margin": -0.1}, {"side": 0}):
        with pytest.raises(UserError, match="give"):
            replace(TIGHT, **wrong)
    with pytest.raises(UserError, match="hides cells of RoIs, which crops have not; set it to null"):
        WsodSettings(backbone="crops")


# --- the store


def unreadable() -> NDArray[np.uint8]:
    return pytest.fail("a stored image is not read again")


def test_an_image_is_embedded_once_per_boxes_and_side(clip: Clip, tmp_path: Path) -> None:
    store, boxes = CropStore(tmp_path, clip, TIGHT), tiny_proposals(0)
    first = store.of_image("a", lambda: tiny_image(0), boxes)
    assert first.dtype == np.float16 and first.shape == (len(boxes), clip.joint_width)
    np.testing.assert_array_equal(first, embed_crops(clip, tiny_image(0), boxes, TIGHT).astype(np.float16))
    again = CropStore(tmp_path, clip, TIGHT).of_image("a", unreadable, boxes)
    np.testing.assert_array_equal(first, again)
    turned = store.of_image("a", lambda: tiny_image(0), boxes, mirrored=True)
    assert not np.array_equal(turned, first)
    assert len(store.of_image("a", lambda: tiny_image(0), boxes[:3])) == 3, "other boxes are other crops"
    assert len(list(store.folder.glob("a-*.safetensors"))) == 3

    (damaged,) = [path for path in store.folder.glob("a-*.safetensors") if path.stat().st_size < 600]
    damaged.write_bytes(damaged.read_bytes()[:40])
    assert len(store.of_image("a", lambda: tiny_image(0), boxes[:3])) == 3


def test_another_clip_or_setting_is_another_store(clip: Clip, tmp_path: Path) -> None:
    stores = [
        CropStore(tmp_path, clip, TIGHT),
        CropStore(tmp_path, tiny_clip(seed=1), TIGHT),
        CropStore(tmp_path, clip, replace(TIGHT, margin=0.1)),
        CropStore(tmp_path, clip, replace(TIGHT, side=48)),
    ]
    assert len({store.folder for store in stores}) == 4 and all((s.folder / "settings.json").is_file() for s in stores)


def test_a_stopped_build_goes_on_and_opens_nothing_without_boxes(clip: Clip, tmp_path: Path) -> None:
    opened: list[int] = []

    def read(index: int) -> NDArray[np.uint8]:
        opened.append(index)
        return tiny_image(index)

    boxes = [tiny_proposals(0), np.zeros((0, 4), np.float32), tiny_proposals(2)]
    keys, readers = ["a", "b", "c"], [lambda index=index: read(index) for index in range(3)]

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    store = CropStore(tmp_path, clip, TIGHT)
    with pytest.raises(KeyboardInterrupt):
        store.build(keys, readers, boxes, mirrored=True, progress=stop)
    seen: list[tuple[int, int]] = []
    store.build(keys, readers, boxes, mirrored=True, progress=lambda *at: seen.append(at))
    assert opened == [0, 0, 2, 2] and seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert len(list(store.folder.glob("*-mirrored.safetensors"))) == 2


# --- the detector


def crop_data(clip: Clip, root: Path, images: int, crops: CropSettings = TIGHT) -> WsodData:
    """The world of :mod:`tiny_wsod` as crops."""
    keys = [f"{index:04x}" for index in range(images)]
    boxes = [tiny_proposals(index) for index in range(images)]
    readers = [lambda index=index: tiny_image(index) for index in range(images)]
    views = CropStore(root, clip, crops).views(keys, readers, boxes, [(48, 64)] * images)
    return WsodData(keys, views, TAGS[np.arange(images) % 3], boxes)


def trained(settings: WsodSettings, data: WsodData, folder: Path, iterations: int = 6) -> WsodDetector:
    training = replace(TRAINING, iterations=iterations, batch=4, lr=2e-3, steps=(), save_every=1000)
    detector = build_detector(settings, 2)
    train_detector(detector, data, training, WsodFiles(folder, "ab" * 32))
    return detector


def test_tags_alone_teach_where_things_are(clip: Clip, settings: WsodSettings, tmp_path: Path) -> None:
    """Against the same detector untrained. A margin tells a whole square from a part of it, which is as red."""
    framed = replace(settings, crops=CropSettings(margin=0.2, side=32))
    data = crop_data(clip, tmp_path, 48, framed.crops)
    taught = replace(data, **{n: getattr(data, n)[:24] for n in ("keys", "readers", "tags", "proposals")})
    shown = [(index, kind) for index in range(24, 48) for kind in TAGS[index % 3].nonzero()[0]]  # unseen images
    learned, untaught = (
        sum(best_overlap(detector, data, *each) > 0.5 for each in shown)
        for detector in (trained(framed, taught, tmp_path, iterations=60), build_detector(framed, 2))
    )
    assert len(shown) == 32 and learned >= 16 and learned > untaught + 10


def best_overlap(detector: WsodDetector, data: WsodData, index: int, kind: int) -> float:
    """IoU of a square with the best detection of its colour."""
    found = detect(detector, data.readers[index](), ONE_VIEW)
    best = found.boxes[found.labels == kind][:1]
    return float(box_iou(torch.from_numpy(best), torch.from_numpy(tiny_boxes(index)[kind][None])))


@pytest.mark.parametrize("head", ["oicr", "mist"])
def test_a_stored_detector_finds_the_same(clip: Clip, settings: WsodSettings, tmp_path: Path, head: str) -> None:
    own = settings if head == "oicr" else replace(settings, head="mist", mining="spread")
    data = crop_data(clip, tmp_path, 6)
    detector = trained(own, data, tmp_path)
    again = load_detector(WsodFiles(tmp_path, "ab" * 32).detector)
    assert again.settings == own
    assert [name for name in again.state_dict() if name.startswith("body.")] == ["body.fingerprint"]
    one, other = (detect(model, data.readers[2](), WsodInference((32, 48), 96)) for model in (detector, again))
    assert len(one.boxes) and all(np.array_equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


def test_a_detector_knows_its_clip_and_lengths_mean_nothing(clip: Clip) -> None:
    body = CropBody(clip)
    seen = body(torch.randn(5, clip.joint_width))
    torch.testing.assert_close(seen.square().mean(1), torch.ones(5))
    torch.testing.assert_close(body(3 * seen), seen)
    with pytest.raises(UserError, match="trained on another CLIP"):
        CropBody(tiny_clip(seed=1)).load_state_dict(body.state_dict())


def test_sizes_of_views_change_nothing_and_the_mirrored_one_counts(
    clip: Clip, settings: WsodSettings, tmp_path: Path
) -> None:
    detector = build_detector(settings, 2).eval()
    image = crop_data(clip, tmp_path, 3).readers[2]()
    scores = [
        score_rois(detector, image, WsodInference(sizes, 96, flip=flip)).scores
        for sizes, flip in (((32,), False), ((32, 48), False), ((32,), True))
    ]
    assert torch.equal(scores[0], scores[1]) and not torch.equal(scores[0], scores[2])
    assert torch.equal(image.view(32, 96, mirrored=True).boxes, mirror(torch.from_numpy(tiny_proposals(2)), 64))


# --- the method


def test_a_run_embeds_each_image_once_in_all_its_stages(
    clip: Clip, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_sam_folder(tmp_path / "sam")
    embedded: list[int] = []
    embed = crop_store.embed_crops
    monkeypatch.setattr(
        crop_store, "embed_crops", lambda *given, **named: (embedded.append(len(given[2])), embed(*given, **named))[1]
    )
    wsod = WsodSettings(backbone="crops", weights=str(folder), crops=TIGHT, drop_block=None, width=16)
    settings: WeakSamSettings = tiny_settings(tmp_path, wsod=wsod)
    settings = replace(settings, wsod_training=replace(TRAINING, flip=0.0))
    dataset = tagged_objects(tmp_path / "images", 5)
    workspace = Workspace(tmp_path / "run", tmp_path / "features")
    data = METHOD.prepare(settings, dataset, workspace)
    assert len(data) == 5
    for score in METHOD.references(settings, dataset, workspace):
        list(score.results())
    METHOD.prepare(settings, dataset, Workspace(tmp_path / "other", tmp_path / "features"))
    assert len(embedded) == 5, "neither the stages nor another run embed an image again"
    validation = tagged_objects(tmp_path / "val", 3, split="val", seed=9)
    assert len(METHOD.prepare(settings, validation, workspace)) == 3 and len(embedded) == 8
