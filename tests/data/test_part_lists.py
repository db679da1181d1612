"""Class lists of the published part datasets: the counts and places of spec partclipseg sections 1 and 7."""

from __future__ import annotations

import pytest

from weakly.data.class_names import VOC_NAMES
from weakly.data.object_parts import object_and_part, object_table
from weakly.data.part_lists import MergeTable, merge_table, part_list
from weakly.vocabulary import Category, Vocabulary


@pytest.mark.parametrize(
    ("name", "classes", "objects", "parts", "prompts"),
    [
        ("pascal_part_116", (116, 74, 42), (16, 11, 5), (42, 41), (53, 59)),
        ("ade20k_part_234", (234, 176, 58), (44, 33, 11), (85, 83), (117, 130)),
        ("partimagenet_40", (147, 92, 55), (40, 25, 15), (13, 13), (39, 54)),
    ],
)
def test_counts_are_the_published_ones(name, classes, objects, parts, prompts) -> None:
    """Spec parity check 1: all / seen / unseen; prompts are parts, objects and background, in training and test."""
    published = part_list(name)
    pairs = [object_and_part(category) for category in published.vocabulary().categories]
    seen = [pair for pair in pairs if pair[0] not in published.unseen]
    assert (len(pairs), len(seen), len(pairs) - len(seen)) == classes
    owners, seen_owners = {o for o, _ in pairs}, {o for o, _ in seen}
    assert (len(owners), len(seen_owners), len(published.unseen)) == objects
    words, seen_words = {p for _, p in pairs}, {p for _, p in seen}
    assert (len(words), len(seen_words)) == parts
    assert (len(seen_words) + len(seen_owners) + 1, len(words) + len(owners) + 1) == prompts


def test_part_words_that_are_never_seen() -> None:
    def lost(name: str) -> set[str]:
        published = part_list(name)
        seen = {part for whole, parts in published.objects.items() if whole not in published.unseen for part in parts}
        return {f"{o}'s {p}" for o in published.unseen for p in published.objects[o] if p not in seen}

    assert lost("pascal_part_116") == {"bird's beak"}
    assert lost("ade20k_part_234") == {"fan's blade", "van's taillight"}
    assert lost("partimagenet_40") == set()


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("pascal_part_116", {"aeroplane's body": 0, "bottle's cap": 21, "cat's head": 43, "cat's torso": 45,
                             "person's hand": 96, "tvmonitor's screen": 115}),
        ("ade20k_part_234", {"person's arm": 0, "chest of drawers's apron": 53, "glass's base": 182,
                             "light's shade": 233}),
        ("partimagenet_40", {"impala's head": 0, "garbage truck's tier": 14, "American alligator's head": 81,
                             "bald eagle's tail": 146}),
    ],
)  # fmt: skip
def test_places_in_the_lists_are_the_numbers_in_published_maps(name: str, places: dict[str, int]) -> None:
    vocabulary = part_list(name).vocabulary()
    for text, place in places.items():
        assert vocabulary.index(text) == vocabulary.source_id(place) == place


def test_upper_case_objects_come_first() -> None:
    objects, owners = object_table(part_list("partimagenet_40").vocabulary())
    assert objects[:4] == ("American alligator", "Indian cobra", "Komodo dragon", "airliner")
    assert objects[owners[81]] == "American alligator"


def test_every_object_of_partimagenet_has_its_own_synset() -> None:
    published = part_list("partimagenet_40")
    assert list(published.synsets) == list(published.objects)
    assert len({*published.synsets.values()}) == 40
    assert published.synsets["tiger"] == "n02129604"


def raw_names(table: MergeTable) -> dict[str, list[str]]:
    return {whole: sorted(raw for raws in parts.values() for raw in raws) for whole, parts in table.objects.items()}


def test_merges_cover_every_class_of_the_list_and_no_other() -> None:
    table = merge_table("pascal_part_116")
    assert table.version == 1
    assert {*table.vocabulary().names} == {*part_list("pascal_part_116").vocabulary().names}
    assert table.part("dog", "lear") == "ear" and table.part("dog", "muzzle") == "muzzle"
    assert table.part("cat", "muzzle") is None and table.part("chair", "leg") is None
    assert table.part("aeroplane", "engine_10") == "engine" and table.part("aeroplane", "engine") is None


def test_sixty_parts_of_the_sixteen_classes_with_parts() -> None:
    """Spec wps-sam section 8.4: all of VOC's classes but boat, chair, diningtable and sofa."""
    table = merge_table("pascal_part_60")
    assert (table.version, len(table.vocabulary())) == (1, 60)
    assert {*VOC_NAMES} - {*table.objects} == {"boat", "chair", "diningtable", "sofa"}
    assert {whole: len(parts) for whole, parts in table.objects.items()} == {
        "aeroplane": 5, "bicycle": 2, "bird": 5, "bottle": 2, "bus": 7, "car": 7, "cat": 4, "cow": 4, "dog": 4,
        "horse": 4, "motorbike": 2, "person": 4, "pottedplant": 2, "sheep": 4, "train": 3, "tvmonitor": 1,
    }  # fmt: skip
    heads = {raw: table.part("person", raw) for raw in ("head", "leye", "rear", "nose", "hair", "rebrow", "mouth")}
    assert {*heads.values()} == {"head"}
    assert (table.part("horse", "lbho"), table.part("cat", "rfpa"), table.part("bird", "lfoot")) == ("leg",) * 3
    assert (table.part("train", "croofside_12"), table.part("train", "hroofside")) == ("coach", "head")
    assert all(category.object == category.name.partition("'s")[0] for category in table.vocabulary().categories)


def test_both_tables_know_the_same_raw_names_once_each() -> None:
    coarse, fine = raw_names(merge_table("pascal_part_60")), raw_names(merge_table("pascal_part_116"))
    assert coarse == fine
    assert all(len(names) == len({*names}) for names in fine.values())


@pytest.mark.parametrize(
    ("category", "expected"),
    [
        (Category("dog's head"), ("dog", "head")),
        (Category("dog's head", "dog"), ("dog", "head")),
        (Category("dog's head", "animal"), ("dog", "head")),
        (Category("Quadruped Head", "Quadruped"), ("Quadruped", "Head")),
        (Category("traffic_light pole", "traffic light"), ("traffic light", "pole")),
        (Category("head", "fox"), ("fox", "head")),
        (Category("foxtail", "fox"), ("fox", "foxtail")),
        (Category("chest of drawers's leg"), ("chest of drawers", "leg")),
        (Category("glass's base"), ("glass", "base")),
        (Category("head"), (None, "head")),
        (Category("dog's"), (None, "dog's")),
    ],
)
def test_object_and_part_of_a_category(category: Category, expected: tuple[str | None, str]) -> None:
    assert object_and_part(category) == expected


def test_categories_without_an_object_come_after_all_objects() -> None:
    objects, owners = object_table(Vocabulary.from_names(["dog's head", "sky", "cat's head", "dog's tail"]))
    assert objects == ("cat", "dog")
    assert owners.tolist() == [1, 2, 0, 1]
