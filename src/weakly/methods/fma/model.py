"""What trains in FMA-WSSS: context vectors around the class names that a frozen CLIP reads (Equations 5 to 7).

Symbols: G prompts (foreground classes, then backgrounds), M context tokens, n name tokens, W width of CLIP's token
embeddings, E width of the joint space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from weakly.errors import UserError
from weakly.foundation.clip import Clip

NamePosition = Literal["append", "prepend"]
"""``append``: the name after the context (Eq. 5). ``prepend``: before it (Eq. 6)."""

CLIP_ES_TEMPLATES = ("a clean origami {}.",)
"""What CLIP-ES tells CLIP about a foreground or background class (spec fma-wsss section 8.2)."""


class PromptContext(nn.Module):
    """Learned context vectors, and the frozen tokens of the names between which they stand.

    A prompt is ``[start | context | name | . | end]`` or ``[start | name | context | . | end]``, padded after the end
    to the length of the longest; the causal mask of the text encoder makes the padding invisible, so it is as short as
    can be (spec fma-wsss sections 2.1 and 2.2). Both forms agree where the name is empty (Eq. 7).

    Attributes:
        context: (M, W), or (G, M, W) where every prompt has its own; all that trains and all that is saved.

    Args:
        clip: its tokenizer and token embedding read the names; not kept.
        names: of G prompts; underscores become spaces. An empty name leaves the context alone, as for the
            backgrounds of the segmentation prompts.
        per_class: every prompt has its own context.
        position: where the names go.
        length: M.
        std: of the normal distribution that the context starts from.
        seed: of that distribution; a text counts as its SHA-1 modulo 2^32.

    Raises:
        UserError: a prompt is longer than CLIP can read.
    """

    context: nn.Parameter
    tokens: Tensor
    layout: Tensor
    end: Tensor

    def __init__(
        self,
        clip: Clip,
        names: Sequence[str],
        *,
        per_class: bool = False,
        position: NamePosition = "append",
        length: int = 16,
        std: float = 0.015,
        seed: str | int = "真",
    ) -> None:
        super().__init__()
        ids = clip.tokenize([f"{name.replace('_', ' ')}." for name in names])
        end = clip.end_positions(ids)
        if int(end.max()) + length >= clip.context:
            row, tokens = int(end.argmax()), int(end.max()) + length + 1
            raise UserError(
                f"The prompt of class {row} ({names[row][:60]!r}) has {tokens} tokens and CLIP reads {clip.context};"
                " shorten the name or the context."
            )
        ids = ids[:, : int(end.max()) + 1]
        name_lengths = end - 2  # besides the start and the full stop
        cut = torch.ones_like(end) if position == "append" else 1 + name_lengths
        frozen = clip.token_embedding(ids).detach()
        own = len(names) if per_class else None
        self.context = nn.Parameter(start_context(length, frozen.shape[-1], own, std, seed))
        self.register_buffer("tokens", frozen, persistent=False)
        self.register_buffer("layout", prompt_layout(cut, ids.shape[1], length), persistent=False)
        self.register_buffer("end", end + length, persistent=False)
        self.to(frozen.device)

    def embeddings(self) -> Tensor:
        """(G, T, W) token embeddings without positions, T = M + 3 + the longest name; the end is at ``end``."""
        prompts, _, width = self.tokens.shape
        context = self.context.expand(prompts, -1, -1)
        rows = self.layout[:, :, None].expand(-1, -1, width)
        return torch.cat([self.tokens, context], 1).gather(1, rows)

    def forward(self, clip: Clip) -> Tensor:
        """(G, E) text features of length 1, differentiable in the context."""
        return functional.normalize(clip.encode_text_embeddings(self.embeddings(), self.end), dim=-1)


@torch.no_grad()
def manual_prompts(clip: Clip, names: Sequence[str], templates: Sequence[str] = CLIP_ES_TEMPLATES) -> Tensor:
    """(G, E) text features of length 1 of fixed prompts, normalised before and after averaging over the templates.

    Args:
        clip: the text encoder.
        names: of G classes; underscores become spaces.
        templates: with ``{}`` where the name goes.

    Raises:
        UserError: there is no template, one has no place for the name, or a prompt is longer than CLIP can read.
    """
    if not templates:
        raise UserError("There is no prompt template; give at least one, such as 'a clean origami {}.'.")
    for template in templates:
        if "{}" not in template:
            raise UserError(f"The prompt template {template!r} has no place for the name; write {{}} where it goes.")
    texts = [template.replace("{}", name.replace("_", " ")) for template in templates for name in names]
    features = functional.normalize(clip.encode_texts(texts), dim=-1)
    return functional.normalize(features.view(len(templates), len(names), -1).mean(0), dim=-1)


def prompt_layout(cut: Tensor, tokens: int, length: int) -> Tensor:
    """(G, tokens + length) int64: which row of ``[tokens | context]`` stands at every place of a prompt.

    Args:
        cut: (G,) number of tokens before the context.
        tokens: number of tokens of a name with start, full stop, end and padding.
        length: number of context tokens.
    """
    place = torch.arange(tokens + length, device=cut.device)
    cut = cut[:, None]
    after = torch.where(place < cut + length, tokens + place - cut, place - length)
    return torch.where(place < cut, place, after)


def start_context(length: int, width: int, prompts: int | None, std: float, seed: str | int) -> Tensor:
    """(M, W), or (G, M, W) with ``prompts`` G: normal values of standard deviation ``std``, the same on every device.

    The released start is length 16, width 512 with ``"真"`` and 0.015 for classification, and with ``"机"``, 0.0125 and
    45 prompts for the segmentation of VOC (spec fma-wsss section 2.3).
    """
    shape = (length, width) if prompts is None else (prompts, length, width)
    return torch.empty(shape).normal_(0, std, generator=torch.Generator().manual_seed(seed_number(seed)))


def seed_number(seed: str | int) -> int:
    """A text as the number that seeds the generator: its SHA-1 modulo 2^32 (spec fma-wsss section 2.3)."""
    if isinstance(seed, int):
        return seed
    return int(hashlib.sha1(seed.encode(), usedforsecurity=False).hexdigest(), 16) % 2**32
