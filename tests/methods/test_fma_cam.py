"""Maps and their gradients against plain second-order autograd (spec fma-wsss section 3.3, parity checks 4 to 7)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_clip import tiny_clip
from torch import Tensor
from torch.nn import functional

from weakly.foundation.clip import Clip, ClipFeatures
from weakly.methods.fma.affinity import map_scores
from weakly.methods.fma.cam import (
    CHUNK,
    SOFTMAX_PARITY_EPS,
    GradCam,
    cosine_logits,
    masked_softmax,
    positives_of,
)
from weakly.methods.fma.losses import activation_loss
from weakly.methods.fma.model import PromptContext, manual_prompts

FOREGROUND = ("cow", "dog", "person with clothes", "sofa", "train", "bus", "bird avian")
BACKGROUND = ("ground", "land", "grass", "tree")
TAGS = torch.zeros(2, 7, dtype=torch.bool)
TAGS[0, [0, 2]] = True
TAGS[1, 5] = True


@pytest.fixture(scope="module")
def clip() -> Clip:
    return tiny_clip()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(2, 3, 160, 208, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def encoded(clip, pixels) -> ClipFeatures:
    return clip.encode(pixels)


@pytest.fixture(scope="module")
def text(clip) -> Tensor:
    return manual_prompts(clip, FOREGROUND + BACKGROUND)


def plain_softmax(logits: Tensor, present: Tensor, eps: float) -> Tensor:
    """Eq. 1 as the released code computes it, term by term; without ``eps``, over the present classes alone."""
    if eps == 0:
        return logits.masked_fill(~present, -torch.inf).softmax(1)
    terms = (logits - logits.max(1, keepdim=True).values).exp() * present
    return terms / (terms.sum(1, keepdim=True) + eps)


def plain_maps(clip: Clip, last_input: Tensor, text: Tensor, tags: Tensor, eps: float) -> Tensor:
    """(N, L): one gradient with its own second-order graph per positive, over the whole batch every time.

    From the image embedding on in double precision, since the softmax of autograd cancels where a score nears one.
    """
    normed = clip.last_norm(last_input).detach().requires_grad_()
    logits = cosine_logits(clip.tail(last_input, normed).double(), text.double(), clip.logit_scale)
    present = torch.cat([tags, torch.ones(len(tags), len(text) - tags.shape[1], dtype=torch.bool)], 1)
    scores = plain_softmax(logits, present, eps)
    maps = []
    for image, label in tags.nonzero().tolist():
        (gradient,) = torch.autograd.grad(scores[image, label], normed, create_graph=True, retain_graph=True)
        maps.append(normed[image, 1:].detach() @ gradient[image, 1:].mean(0))
    return torch.stack(maps)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


class TestMaskedSoftmax:
    @pytest.mark.parametrize(
        ("lead", "second"), [(0, 0.7311), (10, 0.6297), (11.5, 0.4246), (13, 0.1727), (15, 0.0294)]
    )
    def test_an_absent_class_that_leads_lowers_the_released_scores_only(self, lead, second):
        logits = torch.tensor([[20.0 + lead, 20.0, 19.0]])
        present = torch.tensor([[False, True, True]])
        released = masked_softmax(logits, present, eps=SOFTMAX_PARITY_EPS)[0]
        exact = masked_softmax(logits, present)[0]
        assert released[1].item() == pytest.approx(second, abs=6e-5)
        assert exact[1].item() == pytest.approx(0.7311, abs=6e-5)
        assert released[0] == exact[0] == 0

    @settings(max_examples=50, deadline=None)
    @given(seed=st.integers(0, 1000), spread=st.floats(0.1, 30), eps=st.sampled_from([0.0, SOFTMAX_PARITY_EPS]))
    def test_it_is_the_plain_formula(self, seed, spread, eps):
        generator = torch.Generator().manual_seed(seed)
        logits = spread * torch.randn(3, 6, generator=generator)
        present = torch.rand(3, 6, generator=generator) < 0.5
        present[:, -1] = True
        ours = masked_softmax(logits, present, eps=eps)
        torch.testing.assert_close(ours, plain_softmax(logits, present, eps), atol=1e-6, rtol=1e-5)

    def test_hundreds_of_logits_are_no_overflow(self):
        scores = masked_softmax(torch.tensor([[900.0, 500.0, -500.0]]), torch.tensor([[False, True, True]]))
        assert scores.tolist() == [[0.0, 1.0, 0.0]]


class TestMaps:
    @pytest.mark.parametrize("eps", [0.0, SOFTMAX_PARITY_EPS])
    def test_they_are_those_of_plain_autograd(self, clip, encoded, text, eps):
        maps = GradCam(clip, encoded.last_input, encoded.grid).maps(text, TAGS, eps=eps)
        assert maps.shape == (3, 10, 13)
        assert maps.dtype == torch.float32
        plain = plain_maps(clip, encoded.last_input, text, TAGS, eps)
        assert relative(maps.flatten(1), plain) < 1e-4
        assert (maps < 0).any()
        assert (maps > 0).any()

    def test_the_order_is_by_image_then_class(self):
        positives = positives_of(TAGS)
        assert positives.image.tolist() == [0, 0, 1]
        assert positives.label.tolist() == [0, 2, 5]

    def test_a_map_knows_nothing_of_the_other_images(self, clip, encoded, text):
        other = encoded.last_input.clone()
        other[1] = other[1].flip(0) + 1
        maps, same, alone = (
            GradCam(clip, inputs, encoded.grid).maps(text, tags)
            for inputs, tags in (
                (encoded.last_input, TAGS),
                (other, TAGS),
                (encoded.last_input[:1], TAGS[:1]),
            )
        )
        torch.testing.assert_close(same[:2], maps[:2], atol=0, rtol=0)
        assert relative(alone, maps[:2]) < 1e-5
        assert relative(same[2], maps[2]) > 0.1

    def test_a_map_knows_nothing_of_absent_classes(self, clip, encoded, text):
        changed = text.clone()
        changed[[1, 3, 4, 6]] = text[[8, 9, 10, 1]]
        cam = GradCam(clip, encoded.last_input, encoded.grid)
        torch.testing.assert_close(cam.maps(changed, TAGS), cam.maps(text, TAGS), atol=0, rtol=0)

    def test_more_classes_than_a_chunk(self, clip, encoded, text):
        tags = torch.ones(2, 7, dtype=torch.bool)
        tags[1, 1:3] = False
        assert tags.shape[1] > CHUNK
        maps = GradCam(clip, encoded.last_input, encoded.grid).maps(text, tags)
        assert relative(maps.flatten(1), plain_maps(clip, encoded.last_input, text, tags, 0.0)) < 1e-4

    def test_images_without_tags_have_no_maps(self, clip, encoded, text):
        cam = GradCam(clip, encoded.last_input, encoded.grid)
        assert cam.maps(text, torch.zeros_like(TAGS)).shape == (0, 10, 13)
        tags = TAGS.clone()
        tags[0] = False
        torch.testing.assert_close(cam.maps(text, tags), cam.maps(text, TAGS)[2:], atol=1e-7, rtol=1e-5)

    @pytest.mark.parametrize("quietly", [torch.no_grad, torch.inference_mode])
    def test_without_gradients_the_maps_are_the_same(self, clip, encoded, text, quietly):
        with quietly():
            quiet = GradCam(clip, encoded.last_input, encoded.grid).maps(text.clone().requires_grad_(), TAGS)
        assert not quiet.requires_grad
        torch.testing.assert_close(quiet, GradCam(clip, encoded.last_input, encoded.grid).maps(text, TAGS))

    def test_half_precision_inputs_are_computed_in_single(self, clip, encoded, text):
        with torch.autocast("cpu", torch.bfloat16):
            maps = GradCam(clip, encoded.last_input, encoded.grid).maps(text, TAGS)
        torch.testing.assert_close(maps, GradCam(clip, encoded.last_input, encoded.grid).maps(text, TAGS))
        stored = GradCam(clip, encoded.last_input.half(), encoded.grid).maps(text, TAGS)
        assert relative(stored, maps) < 0.01

    def test_embeddings_and_logits_are_clips(self, clip, encoded, text):
        cam = GradCam(clip, encoded.last_input, encoded.grid)
        expected = clip.tail(encoded.last_input, clip.last_norm(encoded.last_input))
        torch.testing.assert_close(cam.embeddings, expected)
        assert not cam.embeddings.requires_grad
        cosine = functional.cosine_similarity(expected[:, None], text[None], dim=-1)
        torch.testing.assert_close(cam.logits(text), 100 * cosine, atol=1e-4, rtol=1e-5)

    def test_clip_es_heat_maps_are_the_same_up_to_their_scale(self, clip, encoded, text):
        """CLIP-ES adds up gradient-weighted activations, clips, and divides by the largest."""
        normed = clip.last_norm(encoded.last_input).detach().requires_grad_()
        features = functional.normalize(clip.tail(encoded.last_input, normed), dim=-1)
        scores = map_scores(GradCam(clip, encoded.last_input, encoded.grid).maps(text, TAGS))
        for row, (image, label) in enumerate(TAGS.nonzero().tolist()):
            classes = [*TAGS[image].nonzero().flatten().tolist(), *range(7, 11)]
            probability = (100 * features[image] @ text[classes].T).softmax(-1)[classes.index(label)]
            (gradient,) = torch.autograd.grad(probability, normed, retain_graph=True)
            weights = gradient[image, 1:].mean(0)
            heat = (weights * normed[image, 1:].detach()).sum(-1).clamp(min=0).view(10, 13)
            if heat.min() == 0:  # else min-max and division by the largest differ
                assert relative(scores[row], heat / heat.max()) < 1e-3


class TestPromptGradients:
    """One product with J stands for the second-order graph."""

    @pytest.mark.parametrize("per_class", [False, True])
    @pytest.mark.parametrize("eps", [0.0, SOFTMAX_PARITY_EPS])
    def test_the_activation_loss_pulls_the_context_as_plain_autograd_does(self, clip, encoded, per_class, eps):
        names = FOREGROUND + ("",) * 4
        prompts = PromptContext(clip, names, per_class=per_class, position="prepend", seed=5)
        seeds = torch.randint(0, 8, (2, 40, 52), generator=torch.Generator().manual_seed(1))
        seeds[:, :, :9] = 255

        def gradient(maps: Tensor) -> Tensor:
            loss = activation_loss(maps.unflatten(1, (10, 13)), seeds, positives_of(TAGS))
            return torch.autograd.grad(loss.foreground + loss.background, prompts.context)[0]

        ours = gradient(GradCam(clip, encoded.last_input, encoded.grid).maps(prompts(clip), TAGS, eps=eps).flatten(1))
        theirs = gradient(plain_maps(clip, encoded.last_input, prompts(clip), TAGS, eps))
        assert theirs.abs().max() > 0
        assert relative(ours, theirs) < 1e-4

    def test_any_upstream_gradient_and_more_classes_than_a_chunk(self, clip, encoded, text):
        tags = torch.ones(2, 7, dtype=torch.bool)
        tags[0, 3] = False
        weights = torch.randn(13, 130, generator=torch.Generator().manual_seed(2))
        leaf = text.clone().requires_grad_()
        ours = GradCam(clip, encoded.last_input, encoded.grid).maps(leaf, tags).flatten(1)
        theirs = plain_maps(clip, encoded.last_input, leaf, tags, 0.0)
        a, b = (torch.autograd.grad((weights * maps).sum(), leaf)[0] for maps in (ours, theirs))
        assert relative(a, b) < 1e-4

    def test_an_absent_leader_matters_to_the_released_softmax(self, clip, encoded, text):
        """The largest logit may belong to a class that is not there; its prompt is then pulled too."""
        cam = GradCam(clip, encoded.last_input, encoded.grid)
        towards = functional.normalize(cam.embeddings, dim=-1)[0]
        leading = text.clone()
        leading[1] = functional.normalize(text[1] + 0.4 * towards, dim=-1)
        leaf = leading.requires_grad_()
        assert cam.logits(leaf)[0].argmax() == 1
        ours = cam.maps(leaf, TAGS, eps=SOFTMAX_PARITY_EPS).flatten(1)
        theirs = plain_maps(clip, encoded.last_input, leaf, TAGS, SOFTMAX_PARITY_EPS)
        assert relative(ours, theirs) < 1e-4
        a, b = (torch.autograd.grad(maps[0].square().sum(), leaf)[0] for maps in (ours, theirs))
        assert b[1].abs().max() > 0
        assert relative(a, b) < 1e-4

    def test_project_back_is_the_adjoint(self, clip, encoded):
        cam = GradCam(clip, encoded.last_input, encoded.grid)
        generator = torch.Generator().manual_seed(0)
        gradients = torch.randn(2, 6, 32, generator=generator)
        maps = torch.randn(2, 6, 130, generator=generator)
        ahead = (cam.project(gradients) * maps).sum((1, 2))
        back = (gradients * cam.project_back(maps)).sum((1, 2))
        torch.testing.assert_close(ahead, back, atol=1e-4, rtol=1e-4)

    def test_a_batch_without_tags_gives_a_gradient_of_zeros(self, clip, encoded, text):
        leaf = text.clone().requires_grad_()
        maps = GradCam(clip, encoded.last_input, encoded.grid).maps(leaf, torch.zeros_like(TAGS))
        loss = activation_loss(maps, torch.zeros(2, 20, 26, dtype=torch.int64), positives_of(torch.zeros_like(TAGS)))
        (gradient,) = torch.autograd.grad(loss.foreground + loss.background, leaf)
        assert (gradient == 0).all()
