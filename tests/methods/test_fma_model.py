"""Learned prompts: where the tokens stand, what trains, manual prompts (spec fma-wsss section 2, parity check 2)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_clip import tiny_clip
from torch.nn import functional

from weakly.errors import UserError
from weakly.foundation.clip import Clip
from weakly.methods.fma.model import (
    PromptContext,
    manual_prompts,
    prompt_layout,
    seed_number,
    start_context,
)

NAMES = ("cow", "", "person with clothes,people,human", "bird avian")
LENGTHS = (1, 0, 7, 2)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return tiny_clip()


class TestLayout:
    @pytest.mark.parametrize("position", ["append", "prepend"])
    def test_the_end_stands_eighteen_places_after_the_name(self, clip, position):
        prompts = PromptContext(clip, NAMES, position=position)
        assert prompts.end.tolist() == [n + 18 for n in LENGTHS]
        assert prompts.embeddings().shape == (4, 16 + 3 + 7, 64)

    @pytest.mark.parametrize("position", ["append", "prepend"])
    @pytest.mark.parametrize("per_class", [False, True])
    def test_the_embeddings_are_those_of_placeholder_texts_with_the_context_put_in(self, clip, position, per_class):
        prompts = PromptContext(clip, NAMES, position=position, per_class=per_class)
        embeddings = prompts.embeddings()
        for row, (name, n) in enumerate(zip(NAMES, LENGTHS, strict=True)):
            texts = ["X " * 16 + name + "."] if position == "append" else [name + " X" * 16 + "."]
            ids = clip.tokenize(texts)[0, : embeddings.shape[1]]
            expected = clip.token_embedding(ids)
            first = 1 if position == "append" else 1 + n
            expected[first : first + 16] = prompts.context[row] if per_class else prompts.context
            end = n + 18
            torch.testing.assert_close(embeddings[row, : end + 1], expected[: end + 1], atol=0, rtol=0)
            assert clip.end_positions(ids[None])[0] == end == prompts.end[row]

    def test_append_and_prepend_agree_only_without_a_name(self, clip):
        appended, prepended = (PromptContext(clip, NAMES, position=p).embeddings() for p in ("append", "prepend"))
        same = (appended == prepended).all(-1).all(-1)
        assert same.tolist() == [n == 0 for n in LENGTHS]

    @settings(max_examples=50, deadline=None)
    @given(
        lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5), context=st.integers(0, 5), prepend=st.booleans()
    )
    def test_every_token_and_every_context_vector_stands_once_and_in_order(self, lengths, context, prepend):
        n = torch.tensor(lengths)
        tokens = 3 + max(lengths)
        layout = prompt_layout(1 + n if prepend else torch.ones_like(n), tokens, context)
        for row, name in zip(layout.tolist(), lengths, strict=True):
            assert sorted(row) == list(range(tokens + context))
            assert [i for i in row if i < tokens] == list(range(tokens))
            first = 1 + name if prepend else 1
            assert row[first : first + context] == list(range(tokens, tokens + context))

    def test_what_follows_the_end_and_where_the_padding_stops_change_nothing(self, clip):
        prompts = PromptContext(clip, NAMES[:2])
        alone = PromptContext(clip, NAMES)
        torch.testing.assert_close(prompts(clip), alone(clip)[:2], atol=2e-6, rtol=0)
        embeddings = alone.embeddings().detach().clone()
        embeddings[1, alone.end[1] + 1 :] = 7.0
        changed = functional.normalize(clip.encode_text_embeddings(embeddings, alone.end), dim=-1)
        torch.testing.assert_close(changed, alone(clip).detach(), atol=2e-6, rtol=0)

    def test_a_prompt_that_clip_cannot_read_is_named(self, clip):
        PromptContext(clip, ["", "cow " * 58])
        with pytest.raises(
            UserError, match=r"class 1 \('cow cow .*\) has 78 tokens and CLIP reads 77; shorten the name"
        ):
            PromptContext(clip, ["", "cow " * 59])

    def test_underscores_are_spaces(self, clip):
        ours, theirs = (PromptContext(clip, [name]).tokens for name in ("teddy_bear", "teddy bear"))
        assert torch.equal(ours, theirs)


class TestStart:
    @pytest.mark.parametrize(
        ("seed", "number", "std", "prompts", "first"),
        [
            ("真", 2763632353, 0.015, None, [0.018094, 0.000799, 0.009573, 0.001562]),
            ("机", 3631188958, 0.0125, 45, [0.009945, 0.018082, 0.021019, -0.012735]),
        ],
    )
    def test_the_released_contexts(self, seed, number, std, prompts, first):
        assert seed_number(seed) == number
        context = start_context(16, 512, prompts, std, seed)
        assert context.shape == ((16, 512) if prompts is None else (prompts, 16, 512))
        torch.testing.assert_close(context.flatten()[:4], torch.tensor(first), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("per_class", [False, True])
    def test_a_prompt_starts_from_them(self, clip, per_class):
        context = PromptContext(clip, NAMES, per_class=per_class, length=5, std=0.1, seed=7).context
        assert torch.equal(context, start_context(5, 64, 4 if per_class else None, 0.1, 7))

    def test_the_seed_alone_decides_and_the_global_generator_is_left_alone(self, clip):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first, again, other = (PromptContext(clip, NAMES, seed=seed).context for seed in (3, 3, 4))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


class TestTraining:
    @pytest.mark.parametrize("per_class", [False, True])
    def test_only_the_context_trains_and_is_saved(self, clip, per_class):
        prompts = PromptContext(clip, NAMES, per_class=per_class)
        assert list(prompts.state_dict()) == ["context"]
        assert [name for name, _ in prompts.named_parameters()] == ["context"]
        text = prompts(clip)
        assert text.shape == (4, 32)
        torch.testing.assert_close(text.norm(dim=-1), torch.ones(4))
        text[:, 0].sum().backward()
        assert (prompts.context.grad.abs().sum(-1) > 0).all()
        assert all(parameter.grad is None for parameter in clip.parameters())

    def test_own_contexts_are_independent(self, clip):
        prompts = PromptContext(clip, NAMES, per_class=True)
        prompts(clip)[2].sum().backward()
        assert prompts.context.grad.abs().sum((1, 2)).nonzero().flatten().tolist() == [2]


class TestManualPrompts:
    def test_one_template_is_the_plain_text(self, clip):
        text = manual_prompts(clip, ["cow", "bird_avian"])
        whole = clip.encode_texts(["a clean origami cow.", "a clean origami bird avian."])
        torch.testing.assert_close(text, functional.normalize(whole, dim=-1), atol=2e-6, rtol=0)

    def test_templates_are_averaged_on_the_sphere(self, clip):
        one, other = (manual_prompts(clip, NAMES, [template]) for template in ("a {}.", "the {} there."))
        both = manual_prompts(clip, NAMES, ["a {}.", "the {} there."])
        torch.testing.assert_close(both, functional.normalize(one + other, dim=-1), atol=2e-6, rtol=0)

    def test_a_template_needs_a_place_for_the_name(self, clip):
        with pytest.raises(UserError, match=r"'a photo' has no place for the name; write \{\}"):
            manual_prompts(clip, NAMES, ["a photo"])
        with pytest.raises(UserError, match="no prompt template"):
            manual_prompts(clip, NAMES, [])
