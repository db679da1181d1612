"""What captions are made of: the facts of a scene, and the sentences about them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_captions import small_bank
from transformers import CLIPTokenizer

from weakly.data.menagerie import scene as scenes
from weakly.data.menagerie.kinds import PART_NAMES
from weakly.data.menagerie.textures import SETTINGS
from weakly.foundation.pretraining.captioned import (
    CaptionedBank,
    draw_view,
)
from weakly.foundation.pretraining.captions import (
    CAPTION_TOKENS,
    Caption,
    agreement,
    plural,
    write_captions,
)
from weakly.foundation.pretraining.scene_facts import (
    BACKDROPS,
    BACKGROUND_WORDS,
    Facts,
    Inventory,
    View,
    backdrop_of,
    read_facts,
    take_inventory,
)
from weakly.foundation.pretraining.small_clip import build_tokenizer

torch.set_num_threads(1)


HEAD, BODY = PART_NAMES.index("Quadruped Head"), PART_NAMES.index("Quadruped Body")


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> CaptionedBank:
    return small_bank(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer()


def two_foxes() -> View:
    """A red fox (head and body) on the left, and of a second, blue one two pixels at the right edge; 32 px."""
    image, part_map = np.full((32, 32, 3), 250, np.uint8), np.zeros((32, 32), np.uint8)
    part_map[8:12, 4:8], part_map[12:24, 4:12], part_map[20:22, 31] = 1, 2, 3
    image[(part_map == 1) | (part_map == 2)] = (200, 36, 36)
    image[part_map == 3] = (46, 96, 180)
    parts = ((HEAD, 0), (BODY, 0), (BODY, 1))
    return View(image, part_map, Inventory("meadow", 0.5, ("fox", "fox"), (112 / 1024, 40 / 1024), parts))


def mirrored(view: View) -> View:
    return View(view.image[:, ::-1], view.part_map[:, ::-1], view.inventory, view.top, view.side)


class TestFacts:
    def test_worked_out(self):
        facts = read_facts(two_foxes())
        unclear = facts.possible - facts.true
        for noun in ("fox", "quadruped"):
            assert {("noun", noun), ("colour", "red", noun), ("position", "left", noun)} <= facts.true
            assert {("part", noun, "head"), ("part", noun, "body"), ("part", "", "head")} <= facts.true
            # The second fox may or may not be seen: so may its colour, its side, and how many they are.
            assert {("count", "one", noun), ("count", "two", noun)} <= unclear
            assert {("colour", "blue", noun), ("position", "right", noun)} <= unclear
        assert {("place", "meadow"), ("word", "grass"), ("word", "sky")} <= facts.true
        assert ("word", "tree") in unclear
        false = {("noun", "dog"), ("colour", "green", "fox"), ("word", "sea"), ("count", "three", "fox")}
        assert not false & facts.possible
        assert facts.true <= facts.possible

    def test_a_whole_fox_is_counted(self):
        view = two_foxes()
        view.part_map[view.part_map == 3] = 0
        facts = read_facts(view)
        assert ("count", "one", "fox") in facts.true
        assert ("count", "two", "fox") not in facts.possible
        assert not any("blue" in fact for fact in facts.possible)

    def test_mirrored_views_swap_left_and_right_only(self, bank):
        swap = {"left": "right", "right": "left"}
        for row in range(len(bank)):
            plain, flipped = read_facts(bank.view(row)), read_facts(mirrored(bank.view(row)))
            for known, other in ((plain.true, flipped.true), (plain.possible, flipped.possible)):
                assert {(fact[0], swap.get(fact[1], fact[1]), *fact[2:]) for fact in known} == other

    def test_close_ups_lose_the_sky(self):
        inventory = Inventory("ocean", 0.6, (), (), ())
        blank = np.zeros((8, 8), np.uint8)
        low = read_facts(View(np.zeros((8, 8, 3), np.uint8), blank, inventory, top=0.58, side=0.4))
        assert ("word", "sky") not in low.true
        assert ("word", "water") in low.true
        high = read_facts(View(np.zeros((8, 8, 3), np.uint8), blank, inventory, top=0.0, side=0.55))
        assert ("word", "sky") in high.true
        assert ("word", "water") not in high.true

    def test_place_and_horizon_are_those_of_the_renderer(self, monkeypatch):
        drawn: list[tuple[object, float]] = []
        paint = scenes.background

        def spy(rng, setting, size):
            image, horizon = paint(rng, setting, size)
            drawn.append((setting, horizon))
            return image, horizon

        monkeypatch.setattr(scenes, "background", spy)
        for index in range(25):
            scenes.render_scene(11, index, 32)
            place, horizon = backdrop_of(11, index)
            assert drawn[-1] == (SETTINGS[place], horizon)

    def test_every_setting_has_its_words(self):
        assert BACKDROPS.keys() == SETTINGS.keys()
        assert {"ground", "grass", "tree", "sky", "water", "sea", "road"} <= set(BACKGROUND_WORDS)

    def test_the_inventory_is_the_scene(self):
        scene = scenes.render_scene(3, 5, 64)
        inventory = take_inventory(scene, "sky", 0.5)
        assert inventory.kinds == tuple(thing.kind for thing in scene.objects)
        assert sum(inventory.areas) == pytest.approx((scene.object_map > 0).mean())
        owners = np.array([0, *(owner + 1 for _, owner in inventory.parts)])
        assert np.array_equal(owners[scene.part_map], scene.object_map)


class TestCaptions:
    @given(st.integers(0, 15), st.integers(0, 2**32 - 1))
    @settings(max_examples=40, deadline=None)
    def test_they_state_true_facts_in_few_known_words(self, bank, tokenizer, row, seed):
        rng = np.random.default_rng(seed)
        facts = read_facts(draw_view(rng, bank.view(row)))
        captions = write_captions(rng, facts, 6)
        assert len(captions) == 6
        for caption in captions:
            assert set(caption.facts) <= facts.true
            assert caption.facts
            assert len(tokenizer(caption.text).input_ids) <= CAPTION_TOKENS
            words = caption.text.replace("'s", " ").replace(",", " ").replace(".", " ").split()
            assert all(len(tokenizer.tokenize(word)) == 1 for word in words)

    def test_they_are_the_generators(self, bank):
        facts = read_facts(bank.view(0))
        first, again = (write_captions(np.random.default_rng(4), facts, 9) for _ in range(2))
        assert first == again
        assert len({caption.text for caption in first}) > 4

    def test_all_families_and_templates_occur(self, bank):
        rng = np.random.default_rng(0)
        captions = [c for row in range(len(bank)) for c in write_captions(rng, read_facts(bank.view(row)), 40)]
        families = {fact[0] for caption in captions for fact in caption.facts}
        assert families == {"noun", "part", "colour", "position", "count", "word", "place"}
        texts = {caption.text for caption in captions}
        assert any(text.startswith("a clean origami ") for text in texts)
        assert any(text.startswith("x x ") for text in texts)
        assert any(" on the left" in text for text in texts)
        assert any(" and " in text for text in texts)

    def test_a_view_of_nothing_is_told_by_its_backdrop(self):
        facts = Facts(frozenset({("place", "room")}), frozenset({("place", "room")}))
        for caption in write_captions(np.random.default_rng(0), facts, 8):
            assert caption.facts == (("place", "room"),)
            assert "room" in caption.text

    def test_plurals(self):
        nouns = ("fox", "dinghy", "monkey", "angelfish", "bear")
        assert [plural(n) for n in nouns] == ["foxes", "dinghies", "monkeys", "angelfish", "bears"]

    @given(st.data())
    @settings(max_examples=50, deadline=None)
    def test_agreement_is_inclusion_of_facts(self, data):
        facts = [("noun", str(number)) for number in range(5)]
        some = st.frozensets(st.sampled_from(facts))
        views = [Facts(true, true | data.draw(some)) for true in data.draw(st.lists(some, min_size=1, max_size=4))]
        stated = data.draw(st.lists(st.frozensets(st.sampled_from(facts), min_size=1), min_size=1, max_size=4))
        true, false = agreement(views, [Caption("", tuple(facts)) for facts in stated])
        assert true.tolist() == [[facts <= view.true for facts in stated] for view in views]
        assert false.tolist() == [[not facts <= view.possible for facts in stated] for view in views]
