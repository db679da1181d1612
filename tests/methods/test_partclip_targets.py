"""Training data of PartCLIPSeg: codes of label maps, views of images, batches of both, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_partclip import SIDE, VOCABULARY, part_dataset, tiny_clipseg_folder

from weakly.errors import UserError
from weakly.methods.partclip.taps import TapEncoder, View, enlarged_size, frozen_encoder, unpack_taps
from weakly.methods.partclip.targets import (
    IGNORED,
    PartData,
    drawn_rows,
    read_targets,
    resize_codes,
    seen_classes,
)
from weakly.vocabulary import Vocabulary

C = len(VOCABULARY)
BOX, DISK, RING = 0, 1, 2


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TapEncoder:
    return frozen_encoder(str(tiny_clipseg_folder(tmp_path_factory.mktemp("clipseg"))))


class TestSeen:
    def test_classes_of_unseen_objects_are_left_out_and_indices_point_into_the_vocabulary(self) -> None:
        seen = seen_classes(VOCABULARY, ("disk",))
        assert seen.categories == (0, 1, 4)
        assert seen.names.classes == tuple(VOCABULARY.names[i] for i in (0, 1, 4))
        assert seen.names.objects == ("box", "ring")

    def test_what_is_unknown_or_leaves_nothing_is_one_sentence(self) -> None:
        with pytest.raises(UserError, match=r"settings\.unseen names 'fox'.*box, disk, ring"):
            seen_classes(VOCABULARY, ("disk", "fox"))
        with pytest.raises(UserError, match="names every object"):
            seen_classes(VOCABULARY, ("box", "disk", "ring"))
        with pytest.raises(UserError, match="names no object"):
            seen_classes(Vocabulary.from_names(["head"]), ())

    @given(st.sets(st.sampled_from(["box", "disk", "ring"]), max_size=2), st.booleans())
    def test_codes_say_class_and_object_of_every_pixel(self, unseen: set[str], ignore: bool) -> None:
        """Every category on its own object, then objects without a part label, background and void."""
        seen = seen_classes(VOCABULARY, sorted(unseen))
        owners = [seen.objects.index(str(category.object)) for category in VOCABULARY.categories]
        labels = np.array([[*range(C), C, C, C, C, 255]], np.uint8)
        objects = np.array([[*owners, BOX, DISK, RING, 3, 65535]], np.uint16)
        found = torch.from_numpy(seen.codes(labels, objects, ignore=ignore)[0].astype(np.int64))
        classes, owned = (values.tolist() for values in seen.classes_and_objects(found))
        k, n = len(seen.names), len(seen.names.objects)
        nobody = IGNORED if ignore else n
        for index, category in enumerate(VOCABULARY.categories):
            if category.object in unseen:
                assert (classes[index], owned[index]) == (k, nobody)
            else:
                assert seen.names.classes[classes[index]] == category.name
                assert seen.names.objects[owned[index]] == category.object
        for position, name in enumerate(("box", "disk", "ring"), C):
            assert classes[position] == k, "an object without a part label is of no class"
            assert owned[position] == (nobody if name in unseen else seen.names.objects.index(name))
        assert (classes[C + 3], owned[C + 3]) == (k, n), "the background"
        assert (classes[C + 4], owned[C + 4]) == (k, nobody), "void"


class TestResizing:
    @given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.integers(0, 9))
    def test_a_pixel_has_the_code_of_the_nearest_centre(self, height: int, width: int, side: int, seed: int) -> None:
        codes = np.random.default_rng(seed).integers(0, 400, (height, width)).astype(np.uint16)
        rows = ((np.arange(side) + 0.5) * height / side).astype(int)
        columns = ((np.arange(side) + 0.5) * width / side).astype(int)
        found = resize_codes(codes, side, "native")
        exact = (np.arange(side) * 2 + 1) * height % (2 * side) != 0  # ties may fall either way
        exact_columns = (np.arange(side) * 2 + 1) * width % (2 * side) != 0
        wanted = codes[rows][:, columns]
        assert np.array_equal(found[exact][:, exact_columns], wanted[exact][:, exact_columns])

    def test_the_same_side_is_the_identity(self) -> None:
        codes = np.arange(25, dtype=np.uint16).reshape(5, 5) * 200
        assert np.array_equal(resize_codes(codes, 5, "native"), codes)

    def test_the_released_path_goes_through_800_pixels_towards_the_origin(self) -> None:
        assert enlarged_size((375, 500)) == (800, 1067) and enlarged_size((100, 400)) == (333, 1333)
        ramp = np.arange(375, dtype=np.uint16)[:, None].repeat(375, 1)
        back = resize_codes(ramp, 375, "resize800")[:, 0]
        assert (back != ramp[:, 0]).mean() == pytest.approx(0.933, abs=5e-4), "spec 6.2"
        assert np.abs(back.astype(int) - ramp[:, 0]).max() == 1


class TestTaps:
    def test_features_are_the_taps_in_another_order(self, encoder: TapEncoder) -> None:
        pixels = torch.randn(2, 3, SIDE, SIDE)
        taps = encoder.clipseg.taps(pixels)
        features = encoder.encode(pixels)
        assert features.shape == (2, *encoder.embedding_shape) == (2, 48, 1, 17)
        assert torch.equal(encoder.taps(features), taps) and torch.equal(unpack_taps(features, 3), taps)

    def test_another_side_is_another_store(self, encoder: TapEncoder) -> None:
        larger = frozen_encoder(encoder.name, 48)
        assert larger.embedding_shape == (48, 1, 37) and larger.fingerprint != encoder.fingerprint
        assert larger.encode(larger.preprocess([np.zeros((9, 70, 3), np.uint8)])).shape == (1, 48, 1, 37)

    def test_views_have_names_and_do_what_they_say(self) -> None:
        image = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)
        assert View().variant == "" and np.array_equal(View().apply(image), image)
        assert np.array_equal(View(bgr=True).apply(image), image[..., ::-1])
        assert np.array_equal(View(mirrored=True).apply(image), image[:, ::-1])
        whole = View(bgr=True, enlarged=True, mirrored=True)
        assert whole.variant == "bgrshort800hflip" and whole.apply(image).shape == (800, 1200, 3)


class TestTargets:
    def test_images_without_a_seen_part_are_left_out_and_counted(self, tmp_path: Path) -> None:
        dataset = part_dataset(tmp_path, 6, empty=1)
        every = read_targets(dataset, seen_classes(VOCABULARY, ()), SIDE, path="native", ignore=True)
        assert every.images == (1, 2, 3, 4, 5) and every.empty == (0,) and every.codes.shape == (5, SIDE, SIDE)
        assert every.codes.dtype == torch.uint8
        boxes = read_targets(dataset, seen_classes(VOCABULARY, ("disk",)), SIDE, path="native", ignore=True)
        assert boxes.images == (2, 4) and boxes.empty == (0, 1, 3, 5)

    def test_a_label_map_that_cannot_be_read_costs_its_image(self, tmp_path: Path) -> None:
        dataset = part_dataset(tmp_path, 4)
        broken = replace(dataset.records[2], label_map_path=tmp_path / "none.png")
        dataset = replace(dataset, records=(*dataset.records[:2], broken, dataset.records[3]))
        targets = read_targets(dataset, seen_classes(VOCABULARY, ()), SIDE, path="native", ignore=True)
        assert targets.images == (0, 1, 3)
        assert [one.image_id for one in targets.skipped] == [2] and "none.png" in targets.skipped[0].reason

    def test_many_classes_take_two_bytes(self, tmp_path: Path) -> None:
        names = [f"thing {i}'s part" for i in range(130)]
        vocabulary = Vocabulary.from_names([*VOCABULARY.names, *names])
        dataset = replace(part_dataset(tmp_path, 2), vocabulary=vocabulary)
        seen = seen_classes(vocabulary, ())
        targets = read_targets(dataset, seen, SIDE, path="native", ignore=True)
        assert targets.codes.dtype == torch.int16
        classes, objects = seen.classes_and_objects(targets.codes)
        assert set(classes.unique().tolist()) == {0, 1, 2, 3, 135}
        assert objects.max() == len(seen.names.objects) == 133

    def test_replacements_are_drawn_from_the_others_and_always_the_same(self) -> None:
        rows = drawn_rows(5, 40)
        assert rows[:5].tolist() == [0, 1, 2, 3, 4] and set(rows[5:].tolist()) == {0, 1, 2, 3, 4}
        assert torch.equal(rows, drawn_rows(5, 40))


class TestBatches:
    @pytest.fixture
    def data(self) -> PartData:
        generator = torch.Generator().manual_seed(0)
        seen = seen_classes(VOCABULARY, ())
        codes = torch.randint(0, seen.background + 2, (3, 4, 4), generator=generator).byte()
        views = tuple(torch.randn(2, 3, 6, 1, 5, generator=generator))
        return PartData(views, codes, seen, 2, (2, 2), "area", "object", drawn_rows(3, 1))

    @given(st.lists(st.integers(0, 7), min_size=1, max_size=8))
    def test_a_batch_is_its_images_one_by_one_and_mirrored_ones_have_mirrored_maps(self, indices: list[int]) -> None:
        data = TestBatches.data.__wrapped__(self)  # type: ignore[attr-defined]
        batch = data.__getitems__(indices)
        for position, index in enumerate(indices):
            row = int(data.rows[index % 4])
            source = data.features[index // 4]
            codes = data.codes[row] if index < 4 else data.codes[row].flip(-1)
            classes, objects = data.seen.classes_and_objects(codes)
            assert torch.equal(batch.taps[position], unpack_taps(source[row : row + 1], 2)[0])
            assert torch.equal(batch.classes[position], classes) and torch.equal(batch.objects[position], objects)
            present = batch.parts.label[batch.parts.image == position].tolist()
            assert present == [label for label in classes.unique().tolist() if label < len(data.seen.names)]
            shown = batch.wholes.label[batch.wholes.image == position].tolist()
            assert shown == [o for o in objects.unique().tolist() if 0 <= o < len(data.seen.names.objects)]

    def test_an_index_too_many_is_refused(self, data: PartData) -> None:
        assert len(data) == 4 and data.variants == 2
        with pytest.raises(IndexError, match="view 2 of 2"):
            data[8]
