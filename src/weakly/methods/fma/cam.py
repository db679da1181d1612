"""Class activation maps of a frozen CLIP: Softmax-GradCAM in closed form (FMA-WSSS, Equations 1 to 3).

Let F be the normalised input of CLIP's last vision block and f = tail(F) the image embedding. The map of class c is
``M = F w`` with w the mean over patches of ds/dF, s being the softmax score of the class. One offset d added to all
patches of F makes w = J^T g / L, where J = df/dd and g = ds/df. F, f and J know nothing of the text and g has a closed
form, so M is *linear* in g: a map costs one product with J^T, and its gradient one product with J, no second-order
graph (spec fma-wsss section 3.3). One forward pass through the block serves all classes, and because the offset is the
same for all patches, the product with J^T needs little of a backward pass through the attention (:class:`_Tail`).

Symbols: B images, G prompts (C foreground classes, then backgrounds), N positives (an image and a class present in
it), P positives of the fullest image, L = h w patches, K width of the vision model, E width of the joint space.
Everything is float32, also under autocast.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from weakly.foundation.clip import Clip
from weakly.foundation.clip_blocks import PatchAttention, by_head

SOFTMAX_PARITY_EPS = 1e-5
"""The released code adds this to the denominator of Eq. 1, after dividing by the largest term of *all* G classes."""

CHUNK = 4
"""Positives of an image whose maps are computed at once; each holds the activations of one block for B images."""


class Positives(NamedTuple):
    """N pairs of an image and a class that is present in it, by image, then by class.

    Attributes:
        image: (N,) int64 index along B.
        label: (N,) int64 foreground class.
    """

    image: Tensor
    label: Tensor


def positives_of(tags: Tensor) -> Positives:
    """The positives of (B, C) bool tags."""
    image, label = tags.nonzero().unbind(1)
    return Positives(image, label)


class GradCam:
    """A batch of images, ready for maps of any classes under any prompts.

    Holds the activations of one block. Positives of different images share a pass, so the maps of all images take P
    passes. Under ``torch.no_grad`` or ``torch.inference_mode`` nothing else is kept.

    Attributes:
        embeddings: (B, E) image embeddings f, not normalised, without gradient.
        grid: (h, w).
        scale: factor of the cosine in the logits.

    Args:
        clip: the frozen model.
        last_input: (B, 1 + L, K) input of the last vision block.
        grid: (h, w), L = h w.
        last_attention: of the last vision block, where :meth:`~weakly.foundation.clip.Clip.encode` just found it;
            computed from ``last_input`` where not given, since it is too large to be stored.
    """

    def __init__(
        self,
        clip: Clip,
        last_input: Tensor,
        grid: tuple[int, int],
        last_attention: PatchAttention | None = None,
    ) -> None:
        self.grid = grid
        self.scale = clip.logit_scale
        with torch.autocast(last_input.device.type, enabled=False):
            entering = last_input.detach().float()
            seen = clip.last_attention(entering) if last_attention is None else last_attention
            self._normed = seen.normed
            self._tail = _Tail(clip, entering, seen)
            self.embeddings = self._tail.embeddings

    def logits(self, text: Tensor) -> Tensor:
        """(B, G) logits of (G, E) text features of length 1, differentiable in the text."""
        return cosine_logits(self.embeddings, text, self.scale)

    def maps(self, text: Tensor, tags: Tensor, *, eps: float = 0.0) -> Tensor:
        """Signed maps of the classes present in every image, differentiable in the text, once.

        Args:
            text: (G, E) text features of length 1: C foreground classes, then the backgrounds.
            tags: (B, C) bool, the classes present.
            eps: of :func:`masked_softmax`.

        Returns:
            (N, h, w) float32 in the order of :func:`positives_of`; not clipped at zero.
        """
        positives = positives_of(tags)
        with torch.autocast(text.device.type, enabled=False):
            gradients = score_gradients(self.embeddings, text.float(), tags, self.scale, eps=eps)
            slot = (tags.cumsum(1) - 1)[positives]
            slots = max(1, int(tags.sum(1).max()))
            by_image = gradients.new_zeros(len(tags), slots, gradients.shape[1])
            by_image = by_image.index_put((positives.image, slot), gradients)
            maps: Tensor = _Project.apply(by_image, self)
        return maps[positives.image, slot].unflatten(1, self.grid)

    def project(self, gradients: Tensor) -> Tensor:
        """(B, P, E) gradients of scores to (B, P, L) maps: F J^T g / L."""
        weights = torch.cat([self._tail.pull(part) for part in gradients.split(CHUNK, 1)], 1)
        patches = self._normed[:, 1:]
        return weights @ patches.mT / patches.shape[1]

    def project_back(self, maps: Tensor) -> Tensor:
        """(B, P, L) to (B, P, E): J F^T M / L, the adjoint of :meth:`project`."""
        patches = self._normed[:, 1:]
        offsets = maps @ patches / patches.shape[1]
        return torch.cat([self._tail.push(part) for part in offsets.split(CHUNK, 1)], 1)


class _Tail:
    """What follows the attention of the last vision block, as :meth:`~weakly.foundation.clip.Clip.tail`, with J^T.

    Attributes:
        embeddings: (B, E).
    """

    @torch.no_grad()
    def __init__(self, clip: Clip, last_input: Tensor, found: PatchAttention) -> None:
        vision = clip.model.vision_model
        block = vision.encoder.layers[-1]
        self._attention, self._found = block.self_attn, found
        self._mlp, self._projection = block.mlp, clip.model.visual_projection
        hidden = last_input[:, 1:] + block.self_attn.out_proj(found.seen.transpose(1, 2).flatten(2))
        norm2 = self._norm2 = _Norm(block.layer_norm2, hidden)
        inner = block.mlp.fc1(norm2.output)
        activation = torch.func.vjp(block.mlp.activation_fn, inner)
        (self._slope,) = activation[1](inner.new_ones(()).expand_as(inner))
        post = self._post_norm = _Norm(vision.post_layernorm, hidden + block.mlp.fc2(activation[0]))
        self._unit_inner = post.unit @ block.mlp.fc2.weight
        self._post_heads, self._norm2_heads = (each.unit @ block.self_attn.out_proj.weight for each in (post, norm2))
        self._folded = _fold(block, last_input.device)
        self._norm2_inner = inner.sub_(self._folded.at_zero)
        self.embeddings: Tensor = self._projection(post.output.mean(1)).float()

    @torch.no_grad()
    def pull(self, gradients: Tensor) -> Tensor:
        """(B, P, E) to (B, P, K): products with J^T, the gradient of the offset that all patches have in common.

        The mean over patches gives all of them the same gradient u of the last norm's output x. That of its input,
        ``scale (u' - x (x u) / K)``, is a vector of the class and a multiple of x: so is its product with the weights
        of the MLP, and that of x (``_unit_inner``) serves all classes. The scale of a patch comes last.
        """
        post = self._post_norm
        patches, width = post.unit.shape[1:]
        scaled = gradients @ self._projection.weight / patches * post.weight
        centred = (scaled - scaled.mean(-1, keepdim=True))[:, :, None]
        along = -(scaled @ post.unit.mT / width)[..., None]
        inner = torch.addcmul(centred @ self._mlp.fc2.weight, along, self._unit_inner[:, None])
        heads = self._through_mlp(inner.mul_(self._slope[:, None]), width)
        heads = heads.add_(centred @ self._attention.out_proj.weight).addcmul_(along, self._post_heads[:, None])
        return self._pull_attention(by_head(self._attention, heads.mul_(post.scale[:, None])))

    def _through_mlp(self, inner: Tensor, width: int) -> Tensor:
        """(B, P, L, I) gradients inside the MLP to those of what the heads see, (B, P, L, K): the MLP's own part.

        With W the first layer times the weight of the norm before it, y that norm's unit output and O the output layer
        of the attention, it is ``scale (s - mean(s) - y (s y) / K) O`` for ``s = inner W``. O goes into each term, so
        that a class costs one product, ``inner (W O)``, instead of two; ``s y = inner (W y)`` asks for what the
        forward pass has.
        """
        folded = self._folded
        mean = (inner @ folded.mean)[..., None]
        along = torch.einsum("bpli,bli->bpl", inner, self._norm2_inner)[..., None] / width
        change = (inner @ folded.product).addcmul_(mean, folded.ones, value=-1)
        return change.addcmul_(along, self._norm2_heads[:, None], value=-1).mul_(self._norm2.scale[:, None])

    @torch.no_grad()
    def push(self, offsets: Tensor) -> Tensor:
        """(B, P, K) to (B, P, E): products with J, the change of the embedding with an offset of all patches of F.

        The steps of :meth:`pull` the other way round. Only a mean over patches leaves the block, so the MLP's second
        layer and the projection see one vector per class instead of one per patch.
        """
        post, out = self._post_norm, self._attention.out_proj.weight
        patches, width = post.unit.shape[1:]
        heads = self._push_attention(offsets)
        inner = self._into_mlp(heads, width).mul_(self._slope[:, None])
        sums = (post.scale.mT[:, None] @ each for each in (heads, inner))
        total, total_inner = (each[:, :, 0] for each in sums)
        moved = total @ out.T + total_inner @ self._mlp.fc2.weight.T
        along = torch.einsum("bplk,blk->bpl", heads, self._post_heads)
        along = (along + torch.einsum("bpli,bli->bpl", inner, self._unit_inner)) * post.scale.mT / width
        moved = (moved - moved.mean(-1, keepdim=True) - along @ post.unit) / patches
        change: Tensor = (moved * post.weight) @ self._projection.weight.T
        return change

    def _into_mlp(self, heads: Tensor, width: int) -> Tensor:
        """(B, P, L, K) changes of what the heads see to those inside the MLP, (B, P, L, I): as :meth:`_through_mlp`."""
        folded = self._folded
        along = torch.einsum("bplk,blk->bpl", heads, self._norm2_heads)[..., None] / width
        change = (heads @ folded.product.T).addcmul_((heads @ folded.ones)[..., None], folded.mean, value=-1)
        return change.addcmul_(along, self._norm2_inner[:, None], value=-1).mul_(self._norm2.scale[:, None])

    def _push_attention(self, offsets: Tensor) -> Tensor:
        """(B, P, K) offsets of all patches to the (B, P, L, K) change of what the heads see.

        In the symbols of :meth:`_pull_attention`, for an offset that is ``a``, ``b`` and ``c`` to the queries, keys and
        values of a head: with ``s_j = a k_j`` the change is ``A (s v) - (A s) o + (q b) A_0 (o - v_0) + (1 - A_0) c``,
        where A_0 is the attention to the class token.
        """
        attention, (_, query, key, value, weights, seen) = self._attention, self._found
        layers = (attention.q_proj, attention.k_proj, attention.v_proj)
        of_query, of_key, of_value = (by_head(attention, offsets @ layer.weight.T) for layer in layers)  # (B, H, P, d)
        strength = attention.scale * of_query @ key.mT  # (B, H, P, 1 + L)
        spread = (strength[..., None] * value[:, :, None]).transpose(2, 3).flatten(3)  # (B, H, 1 + L, P d)
        spread = (weights @ spread).unflatten(3, (strength.shape[2], -1))  # (B, H, L, P, d)
        own = (weights @ strength.mT)[..., None]
        to_class = weights[..., 0, None, None]
        keyed = (attention.scale * query @ of_key.mT)[..., None] * to_class
        seen = seen[:, :, :, None]
        change = spread - own * seen + keyed * (seen - value[:, :, None, :1]) + (1 - to_class) * of_value[:, :, None]
        return change.permute(0, 3, 2, 1, 4).flatten(3)  # (B, P, L, K)

    def _pull_attention(self, change: Tensor) -> Tensor:
        """(B, P, H, L, d) gradients of what the heads see to (B, P, K).

        With A the weights, q, k and v of a head, o = A v, and G the gradient of o, the gradient of the logits is
        ``S_ij = A_ij (G_i v_j - G_i o_i)``. Only sums over patches are needed:

        - ``sum_i S_ij = (A^T G)_j v_j - (A^T (G o))_j`` for the queries, one product with A instead of four;
        - ``sum_{j > 0} S_ij = -S_i0`` for the keys, since S has rows of sum zero and the class token has no offset;
        - ``sum_{j > 0} A_ij = 1 - A_i0`` for the values.
        """
        attention, (_, query, key, value, weights, seen) = self._attention, self._found
        change = change.transpose(1, 2)  # (B, H, P, L, d)
        own = (change * seen[:, :, None]).sum(-1)  # G o
        back = weights.mT @ change.transpose(2, 3).flatten(3)  # (B, H, 1 + L, P d)
        back = back.unflatten(3, (own.shape[2], -1)).transpose(2, 3)
        columns = (back * value[:, :, None]).sum(-1) - own @ weights
        to_class = weights[..., 0]
        first = to_class[:, :, None] * ((change @ value[:, :, None, 0, :, None])[..., 0] - own)
        parts = (
            (columns @ key * attention.scale, attention.q_proj),
            (-first @ query * attention.scale, attention.k_proj),
            (((1 - to_class)[:, :, None, None] @ change)[..., 0, :], attention.v_proj),
        )
        for_query, for_key, for_value = (part.transpose(1, 2).flatten(2) @ layer.weight for part, layer in parts)
        return for_query + for_key + for_value


class _Folded(NamedTuple):
    """Weights of the last block that every image shares, multiplied once; I is the inner width of its MLP.

    Attributes:
        product: (I, K), W O of :meth:`_Tail._through_mlp`.
        mean: (I,), of W over K.
        ones: (K,), a row of ones times O.
        at_zero: (I,), what the MLP's first layer says where y is zero.
    """

    product: Tensor
    mean: Tensor
    ones: Tensor
    at_zero: Tensor


@lru_cache(maxsize=1)
@torch.no_grad()
def _fold(block: Any, device: torch.device) -> _Folded:  # noqa: ARG001 - a block that has moved is another key
    first, norm, out = block.mlp.fc1, block.layer_norm2, block.self_attn.out_proj.weight
    weight = first.weight * norm.weight
    return _Folded(weight @ out, weight.mean(1), out.sum(0), first(norm.bias))


class _Norm:
    """A layer norm of (B, L, K) and what its gradient needs.

    Attributes:
        output: (B, L, K).
        unit: (B, L, K), the output before weight and bias.
        scale: (B, L, 1), one over the standard deviation.
        weight: (K,).
    """

    def __init__(self, norm: nn.LayerNorm, states: Tensor) -> None:
        self.weight: Tensor = norm.weight
        # Ten times as fast as torch.var_mean, and one pass for all three.
        self.unit, _, self.scale = torch.native_layer_norm(states, norm.normalized_shape, None, None, norm.eps)
        self.output = torch.addcmul(norm.bias, self.unit, norm.weight)


class _Project(torch.autograd.Function):
    """:meth:`GradCam.project` with its adjoint as the backward pass."""

    @staticmethod
    def forward(ctx: Any, gradients: Tensor, cam: GradCam) -> Tensor:
        ctx.cam = cam
        return cam.project(gradients)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, maps: Tensor) -> tuple[Tensor, None]:
        with torch.autocast(maps.device.type, enabled=False):
            return ctx.cam.project_back(maps), None


def cosine_logits(embeddings: Tensor, text: Tensor, scale: float) -> Tensor:
    """(B, G) logits: ``scale`` times the cosine of (B, E) image embeddings and (G, E) text features of length 1."""
    return scale * functional.normalize(embeddings, dim=-1) @ text.T


def masked_softmax(logits: Tensor, present: Tensor, *, eps: float = 0.0) -> Tensor:
    """Scores of the classes present, zero elsewhere (Eq. 1).

    With ``eps`` the denominator gains ``eps`` times the largest term of all G classes, present or not. The released
    code does so with 1e-5, which makes the scores vanish where an absent class leads the present ones by ten logits or
    more.

    Args:
        logits: (B, G).
        present: (B, G) bool, at least one in every row.
        eps: 0 for the exact softmax, :data:`SOFTMAX_PARITY_EPS` for the released one.
    """
    return _shares(logits, present, eps)[0]


def score_gradients(embeddings: Tensor, text: Tensor, tags: Tensor, scale: float, *, eps: float = 0.0) -> Tensor:
    """(N, E) gradients g = ds/df of the scores of all positives, differentiable in the text.

    ``g = scale s_c / |f| (I - f f^T / |f|^2) (t_c - sum_j s_j t_j)`` (spec fma-wsss section 3.3).

    Args:
        embeddings: (B, E) image embeddings f.
        text: (G, E) text features of length 1.
        tags: (B, C) bool, the classes present; the G - C backgrounds always are.
        scale: factor of the cosine in the logits.
        eps: of :func:`masked_softmax`.
    """
    image, label = positives_of(tags)
    present = functional.pad(tags, (0, len(text) - tags.shape[1]), value=True)
    lengths = embeddings.norm(dim=-1, keepdim=True)
    unit = embeddings / lengths
    scores, pull = _shares(scale * unit @ text.T, present, eps)
    others = pull[image].scatter(1, label[:, None], 0)  # t_c - sum q_j t_j cancels where one class has all the score
    direction = others.sum(1, keepdim=True) * text[label] - others @ text
    across = direction - (direction * unit[image]).sum(-1, keepdim=True) * unit[image]
    return scale * scores[image, label, None] / lengths[image] * across


def _shares(logits: Tensor, present: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Scores s (B, G), and q (B, G) with ``ds_c / dlogit_j = s_c ([c = j] - q_j)``.

    Both are the same but for the largest logit, which also is the class whose ``eps``-fold stands in the denominator.
    """
    allowed = logits.masked_fill(~present, -math.inf)
    total = allowed.logsumexp(1, keepdim=True)
    if eps == 0:
        scores = (allowed - total).exp()
        return scores, scores
    largest, leader = logits.max(1, keepdim=True)
    surplus = largest + math.log(eps)
    total = torch.logaddexp(total, surplus)
    scores = (allowed - total).exp()
    return scores, scores.scatter_add(1, leader, (surplus - total).exp())
