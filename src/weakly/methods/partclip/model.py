"""The student of PartCLIPSeg: objects and parts are asked for once, and their parts of objects are composed.

Symbols: B images, T = 1 + L tokens (class token first), K_v vision width, E joint width, d decoder width, N_p parts,
N_o objects, N = N_p + N_o + 1 prompts in the order parts, objects, background, K object-specific part classes (class K
is background), S the side of images and masks in pixels.

The arithmetic is that of spec partclipseg sections 1.3 to 1.9, in the order of section 10: the trunk runs on N prompts
and not on K, what is linear in them is added and not concatenated, and text stays a vector per class. With
``CIDAS/clipseg-rd64-refined`` 27,427,202 parameters train, and the 512 of the background where it learns.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from weakly.foundation.clipseg import ClipSeg
from weakly.methods.partclip.names import PartNames
from weakly.methods.partclip.trunk import BackgroundVector, ClipSegStudent, Trunk, in_chunks, prompt_texts

ObjectText = Literal["offset", "official"]
"""Which embedding is a class's object: its own, or that of the prompt with the object's number, a part (D1)."""

Composition = Literal["average", "random"]
"""How W and R start: as the mean of part and object, or as torch draws a linear layer, as in the release."""


@dataclass(frozen=True, eq=False)
class NameEmbeddings:
    """Names as the model reads them: encoded once per training step, or once per vocabulary.

    Attributes:
        embeddings: (N, E) float32 prompts.
        part_prompt: (K + 1,) int64 prompt of every class's part; the background's is the last prompt.
        object_prompt: (K + 1,) int64 prompt of every class's object; likewise.
        parts: N_p.
        objects: N_o.
    """

    embeddings: Tensor
    part_prompt: Tensor
    object_prompt: Tensor
    parts: int
    objects: int

    @property
    def classes(self) -> int:
        """K, which is also the index of the background among class logits."""
        return len(self.part_prompt) - 1

    @property
    def prompts(self) -> int:
        """N."""
        return self.parts + self.objects + 1

    @property
    def object_of(self) -> Tensor:
        """(K + 1,) int64 object of every class; N_o for the background."""
        return self.object_prompt - self.parts


class Decoded(NamedTuple):
    """What is known of B images and n prompts before masks are made of it; heads run on it a few classes at a time.

    Attributes:
        trunk: of the n prompts.
        part: (B, n, L, d) each prompt as the part of a class: W's first half times its features.
        whole: (B, n, L, d) each prompt as the object of a class: W's second half.
        part_row: (K + 1,) int64 row of every class's part along n; n where it was not run.
        object_row: (K + 1,) int64 row of every class's object.
        scale: (K + 1, d) FiLM factor of every class.
        shift: (K + 1, d) FiLM summand.
    """

    trunk: Trunk
    part: Tensor
    whole: Tensor
    part_row: Tensor
    object_row: Tensor
    scale: Tensor
    shift: Tensor


class Output(NamedTuple):
    """All masks of B images.

    Attributes:
        trunk_logits: (B, N, S, S) of parts, objects and background.
        class_logits: (B, K + 1, S, S), the background last; or those of the classes asked for.
        decoded: what they were made of.
    """

    trunk_logits: Tensor
    class_logits: Tensor
    decoded: Decoded


class PartClipSeg(ClipSegStudent):
    """CLIPSeg with a branch that composes part and object into the part of an object.

    Attributes:
        combine_features: W, 2 d to d, of ``[part | object]`` features.
        combine_texts: R, 2 E to E, of ``[object | part]`` embeddings.
        cond_film_mul: E to d, starts as the decoder's ``film_mul``.
        cond_film_add: E to d, starts as ``film_add``.
        head: starts as the decoder's head.

    Args:
        clipseg: its decoder and tables are copied, and the new heads start as copies of its own.
        obj_text_index: see :data:`ObjectText`.
        background_vector: see :data:`~weakly.methods.partclip.trunk.BackgroundVector`.
        composition: see :data:`Composition`; biases start at zero in both.

    Raises:
        UserError: the decoder is conditioned after its first layer.
    """

    def __init__(
        self,
        clipseg: ClipSeg,
        *,
        obj_text_index: ObjectText = "offset",
        background_vector: BackgroundVector = "learned",
        composition: Composition = "average",
    ) -> None:
        super().__init__(clipseg, background_vector=background_vector)
        self.obj_text_index = obj_text_index
        self.combine_features = _pair_layer(clipseg.reduce_dim, composition)
        self.combine_texts = _pair_layer(clipseg.joint_width, composition)
        self.cond_film_mul: nn.Module = copy.deepcopy(self.decoder.film_mul)
        self.cond_film_add: nn.Module = copy.deepcopy(self.decoder.film_add)
        self.head: nn.Module = copy.deepcopy(self.decoder.transposed_convolution)

    def encode_names(self, clipseg: ClipSeg, names: PartNames) -> NameEmbeddings:
        """Names to prompts, differentiable in the text tables (spec section 1.4); the text tower runs N - 1 times.

        Raises:
            UserError: a name has more tokens than the text tower reads.
        """
        parts, objects = len(names.parts), len(names.objects)
        embeddings = self.encode_prompts(clipseg, clipseg.tokenize(prompt_texts(names.parts, names.objects)))
        prompts = torch.tensor(
            [[*names.part_of, parts + objects], [*(parts + index for index in names.object_of), parts + objects]]
        )
        part, whole = prompts.to(embeddings.device, non_blocking=True)
        return NameEmbeddings(embeddings, part, whole, parts, objects)

    def forward(self, taps: Tensor, names: NameEmbeddings, classes: Tensor | None = None, chunk: int = 16) -> Output:
        """All masks at once; training and prediction make them a few at a time instead.

        Args:
            taps: (B, D, T, K_v) float32, shallowest first.
            names: of :meth:`encode_names`.
            classes: (C,) int64 classes to make masks of, K for the background; all K + 1 by default.
            chunk: masks of an image made at once, see :func:`~weakly.methods.partclip.trunk.in_chunks`.
        """
        decoded = self.decode(taps, names)
        device = taps.device
        wanted = torch.arange(names.classes + 1, device=device) if classes is None else classes
        return Output(
            in_chunks(lambda rows: self.prompt_logits(decoded.trunk, rows), _all(names.prompts, device), chunk),
            in_chunks(lambda rows: self.class_logits(decoded, rows), wanted, chunk),
            decoded,
        )

    def decode(self, taps: Tensor, names: NameEmbeddings) -> Decoded:
        """Everything but the heads, for all N prompts."""
        return self.compose(self.run(self.reduce(taps), names.embeddings), names)

    def compose(self, trunk: Trunk, names: NameEmbeddings, prompts: Tensor | None = None) -> Decoded:
        """The linear half of the object-specific branch (spec section 1.7).

        ``W [F_p | F_o] + c = W_p F_p + W_o F_o + c``, so both products are taken per prompt and added per class.

        Args:
            trunk: of n prompts.
            names: of all N.
            prompts: (n,) int64, which of the N they are; all in order by default.
        """
        width = trunk.features.shape[-1]
        # Rows of prompts that were not run lie past the end, so that asking for them is an error.
        row = trunk.features.new_full((names.prompts,), trunk.features.shape[1], dtype=torch.int64)
        prompts = _all(names.prompts, row.device) if prompts is None else prompts
        row[prompts] = torch.arange(len(prompts), device=row.device)
        of_part, of_object = self.combine_features.weight.split(width, 1)
        texts = self._class_texts(names)
        return Decoded(
            trunk,
            functional.linear(trunk.features, of_part, self.combine_features.bias),
            functional.linear(trunk.features, of_object),
            row[names.part_prompt],
            row[names.object_prompt],
            self.cond_film_mul(texts),
            self.cond_film_add(texts),
        )

    def class_logits(self, decoded: Decoded, classes: Tensor) -> Tensor:
        """(B, C, S, S) mask logits of some object-specific parts; class K is the background (spec section 1.7).

        Args:
            decoded: with the prompts of these classes.
            classes: (C,) int64 in [0, K].
        """
        pairs = decoded.part[:, decoded.part_row[classes]] + decoded.whole[:, decoded.object_row[classes]]
        return self.masks(self.head, decoded.scale[classes, None] * pairs + decoded.shift[classes, None])

    def _class_texts(self, names: NameEmbeddings) -> Tensor:
        """(K + 1, E) ``R [E_s | E_p] + r``."""
        embeddings, background = names.embeddings, names.prompts - 1
        of_object, of_part = self.combine_texts.weight.split(embeddings.shape[1], 1)
        slot = names.object_prompt
        if self.obj_text_index == "official":
            slot = torch.where(slot == background, background, slot - names.parts)
        by_object = functional.linear(embeddings, of_object, self.combine_texts.bias)
        return by_object[slot] + functional.linear(embeddings, of_part)[names.part_prompt]


class ClipSegBaseline(ClipSegStudent):
    """The paper's baseline: CLIPSeg fine-tuned on phrases such as "dog head", one prompt per class (spec section 9)."""

    def encode_names(self, clipseg: ClipSeg, names: PartNames) -> Tensor:
        """(K + 1, E) float32 prompts of the classes, the background last; differentiable in the text tables.

        Raises:
            UserError: a phrase has more tokens than the text tower reads.
        """
        phrases = [f"{whole} {part}" for whole, part in names.pairs]
        return self.encode_prompts(clipseg, clipseg.tokenize(prompt_texts(phrases)))

    def forward(self, taps: Tensor, names: Tensor, chunk: int = 16) -> Tensor:
        """(B, D, T, K_v) taps and (K + 1, E) prompts to (B, K + 1, S, S) logits, the background last."""
        trunk = self.decode(taps, names)
        return in_chunks(lambda rows: self.class_logits(trunk, rows), _all(len(names), taps.device), chunk)

    def decode(self, taps: Tensor, names: Tensor) -> Trunk:
        """Everything but the head."""
        return self.run(self.reduce(taps), names)

    def class_logits(self, decoded: Trunk, classes: Tensor) -> Tensor:
        """(B, C, S, S) mask logits of (C,) int64 classes in [0, K]; K is the background."""
        return self.prompt_logits(decoded, classes)


def _pair_layer(width: int, start: Composition) -> nn.Linear:
    """2 ``width`` to ``width``, without a bias yet."""
    layer = nn.Linear(2 * width, width)
    nn.init.zeros_(layer.bias)
    if start == "average":
        with torch.no_grad():
            layer.weight.copy_(torch.eye(width).repeat(1, 2) / 2)
    return layer


def _all(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device)
