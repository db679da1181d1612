"""Names of parts of objects: what they are made of, and how a person asks for them."""

from __future__ import annotations

from importlib import resources

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from weakly.errors import UserError
from weakly.methods.partclip.names import PartNames, class_pairs, parse_request, part_names
from weakly.vocabulary import Category, Vocabulary

WORD = st.text("abcXY ", min_size=1, max_size=6).map(lambda text: " ".join(text.split())).filter(bool)
PAIRS = st.lists(st.tuples(WORD, WORD), min_size=1, max_size=12, unique_by=lambda pair: (pair[0], pair[1]))


def shipped(name: str) -> tuple[list[str], list[str]]:
    """Class names of a published vocabulary, and its unseen objects."""
    told = yaml.safe_load(resources.files("weakly.data").joinpath("part_names", f"{name}.yaml").read_text())
    return [f"{whole}'s {part}" for whole, parts in told["objects"].items() for part in parts], told["unseen"]


@pytest.mark.parametrize(
    ("name", "classes", "objects", "parts", "prompts"),
    [
        ("pascal_part_116", (116, 74), (16, 11), (42, 41), (59, 53)),
        ("ade20k_part_234", (234, 176), (44, 33), (85, 83), (130, 117)),
        ("partimagenet_40", (147, 92), (40, 25), (13, 13), (54, 39)),
    ],
)
def test_published_vocabularies_have_the_published_counts(name, classes, objects, parts, prompts) -> None:
    """The table at the head of the spec: all names, and those of seen objects."""
    strings, unseen = shipped(name)
    everything = PartNames.from_classes(strings)
    seen = everything.select([k for k, (whole, _) in enumerate(everything.pairs) if whole not in unseen])
    both = (everything, seen)
    assert tuple(map(len, both)) == classes
    assert tuple(len(names.objects) for names in both) == objects
    assert tuple(len(names.parts) for names in both) == parts
    assert tuple(len(names.parts) + len(names.objects) + 1 for names in both) == prompts
    assert everything.classes == tuple(strings)


@pytest.mark.parametrize(
    ("name", "unheard"),
    [
        ("pascal_part_116", {"bird's beak"}),
        ("ade20k_part_234", {"fan's blade", "van's taillight"}),
        ("partimagenet_40", set()),
    ],
)
def test_unseen_classes_with_a_part_word_never_seen(name: str, unheard: set[str]) -> None:
    strings, unseen = shipped(name)
    names = PartNames.from_classes(strings)
    seen_parts = {part for whole, part in names.pairs if whole not in unseen}
    assert {text for text, (_, part) in zip(strings, names.pairs, strict=True) if part not in seen_parts} == unheard


def test_upper_case_precedes_lower_case() -> None:
    names = PartNames.from_classes(shipped("partimagenet_40")[0])
    assert names.objects[:4] == ("American alligator", "Indian cobra", "Komodo dragon", "airliner")


def test_the_first_possessive_divides() -> None:
    names = PartNames.from_classes(["glass's base", "chest of drawers's leg", "dog's cat's eye"])
    assert names.pairs == (("glass", "base"), ("chest of drawers", "leg"), ("dog", "cat's eye"))
    assert names.objects == ("chest of drawers", "dog", "glass")
    assert names.object_of == (2, 0, 1)


@given(PAIRS)
def test_pairs_come_back(pairs: list[tuple[str, str]]) -> None:
    names = PartNames.from_pairs(pairs)
    assert list(names.pairs) == pairs
    assert list(names.objects) == sorted({whole for whole, _ in pairs})
    assert list(names.parts) == sorted({part for _, part in pairs})
    assert PartNames.from_classes(names.classes) == names


@given(PAIRS, st.data())
def test_a_selection_knows_only_what_it_needs(pairs: list[tuple[str, str]], data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.sampled_from(range(len(pairs))), min_size=1, unique=True))
    assert PartNames.from_pairs(pairs).select(indices) == PartNames.from_pairs([pairs[index] for index in indices])


def test_categories_tell_their_object_by_name_or_field() -> None:
    vocabulary = Vocabulary(
        (
            Category("dog's head", object="dog"),
            Category("Quadruped Head", object="Quadruped"),
            Category("wheel", object="car"),
        )
    )
    assert class_pairs(vocabulary) == [("dog", "head"), ("Quadruped", "Head"), ("car", "wheel")]
    assert part_names(vocabulary).objects == ("Quadruped", "car", "dog")


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ((Category("dog's head"), Category("wheel")), "Category 1 .'wheel'. names no object"),
        ((Category("dog", object="dog"),), "Category 0 .'dog'. is the whole 'dog'"),
        ((Category("dog's head"), Category("head", object="dog")), '"dog\'s head" is given 2 times'),
        ((), "There is no part class"),
    ],
)
def test_categories_that_name_no_part_are_told(categories: tuple[Category, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        part_names(Vocabulary(categories))


def test_a_request_becomes_categories() -> None:
    vocabulary = parse_request(" dog : head,  left   ear ;cat:tail;\n traffic light: pole\n")
    assert vocabulary.names == ("dog's head", "dog's left ear", "cat's tail", "traffic light's pole")
    assert [category.object for category in vocabulary.categories] == ["dog", "dog", "cat", "traffic light"]
    assert part_names(vocabulary).pairs[1] == ("dog", "left ear")


@settings(max_examples=50)
@given(PAIRS.filter(lambda pairs: len({(a.casefold(), b.casefold()) for a, b in pairs}) == len(pairs)))
def test_every_request_comes_back(pairs: list[tuple[str, str]]) -> None:
    text = "; ".join(f"{whole}: {part}" for whole, part in pairs)
    assert list(part_names(parse_request(text)).pairs) == pairs


def test_five_hundred_names() -> None:
    text = "; ".join(f"object {i}: " + ", ".join(f"part {j}" for j in range(10)) for i in range(50))
    names = part_names(parse_request(text))
    assert (len(names), len(names.objects), len(names.parts)) == (500, 50, 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The names are empty"),
        (" ; \n ", "The names are empty"),
        ("dog", "'dog' have 0 colons"),
        ("dog: head: ear", "have 2 colons"),
        (": head", "lack the object"),
        ("dog:", "'dog' has an empty part name"),
        ("dog: head,, tail", "'dog' has an empty part name"),
        ("dog: head, tail, Head", '"dog\'s head" 2 times'),
        ("dog: head; Dog: head", '"dog\'s head" 2 times'),
        ("dog's friend: head", 'contains "\'s"'),
    ],
)
def test_a_request_of_another_form_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse_request(text)
    assert "\n" not in str(error.value)
