"""The bundled CLIP's architecture: Hugging Face's ``CLIPModel`` at small widths, with a tokenizer of its own.

The image tower is a ViT of six layers with 16 px patches, as wide as two CPU cores can train; the text tower has
four. A folder in the library's own layout comes out of it, so that everything downstream sees an ordinary CLIP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from weakly.foundation.pretraining.captions import lexicon

START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


@dataclass(frozen=True)
class SmallClipConfig:
    """Sizes of the bundled CLIP.

    Attributes:
        image_size: S, side of the square input in pixels; other sizes interpolate the positions.
        patch_size: pixels.
        width: of the image tower.
        layers: of the image tower.
        heads: of the image tower.
        text_width: of the text tower.
        text_layers: of the text tower.
        text_heads: of the text tower.
        projection: E, dimensions of the joint space.
        context: longest text in tokens.
    """

    image_size: int = 256
    patch_size: int = 16
    width: int = 192
    layers: int = 6
    heads: int = 6
    text_width: int = 128
    text_layers: int = 4
    text_heads: int = 4
    projection: int = 128
    context: int = 77


class ImageFeatures(NamedTuple):
    """Two poolings of one picture through the same projection, unit length.

    Attributes:
        patches: (B, E) mean of the patch tokens, as FMA pools (FMA spec 3.2).
        cls: (B, E) the class token, as CLIP pools.
    """

    patches: Tensor
    cls: Tensor


def build_tokenizer(texts: Iterable[str] | None = None, context: int = 77) -> CLIPTokenizer:
    """CLIP's byte-level BPE with the merges that make one token of every caption word; always the same.

    Ids in CLIP's order: bytes, bytes that end a word, merges, start of text, end of text (the largest id, which also
    pads). Any other text is spelled in bytes.

    Args:
        texts: what to learn the merges from; default: every word of the captions.
        context: longest text in tokens.
    """
    clip = CLIPTokenizer().backend_tokenizer
    spelled = [
        clip.pre_tokenizer.pre_tokenize_str(clip.normalizer.normalize_str(text))
        for text in (lexicon() if texts is None else texts)
    ]
    merges = learn_merges({word for words in spelled for word, _ in words})
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + _WORD_END for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=context)


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent first, until every word is one token; ties go by the alphabet.

    A trainer in the library breaks ties in an order that differs from run to run.
    """
    spelled = [[*word[:-1], word[-1] + _WORD_END] for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for symbols in spelled for pair in pairwise(symbols)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        spelled = [_merged(symbols, best) for symbols in spelled]
    return merges


def _merged(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for symbol in symbols:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


def tokenise(tokenizer: CLIPTokenizer, texts: Sequence[str], length: int | None = None) -> Tensor:
    """(T, L) int64 ids, padded with the end of text to ``length``; default: to the longest text.

    The text tower is causal: what follows the first end of text changes nothing.
    """
    pad = "longest" if length is None else "max_length"
    ids: Tensor = tokenizer(list(texts), padding=pad, max_length=length, truncation=True, return_tensors="pt").input_ids
    return ids


def build_small_clip(config: SmallClipConfig, tokenizer: CLIPTokenizer) -> CLIPModel:
    """A freshly initialised CLIP in training mode, drawing on torch's global random state.

    Patch positions start as two-dimensional sines and cosines: a small ViT need not learn what is next to what.
    """
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = CLIPModel(
        CLIPConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": config.text_width,
                "intermediate_size": 4 * config.text_width,
                "num_hidden_layers": config.text_layers,
                "num_attention_heads": config.text_heads,
                "max_position_embeddings": config.context,
                "projection_dim": config.projection,
                **special,
            },
            vision_config={
                "image_size": config.image_size,
                "patch_size": config.patch_size,
                "hidden_size": config.width,
                "intermediate_size": 4 * config.width,
                "num_hidden_layers": config.layers,
                "num_attention_heads": config.heads,
                "projection_dim": config.projection,
            },
            projection_dim=config.projection,
        )
    )
    with torch.no_grad():
        positions = model.vision_model.embeddings.position_embedding.weight
        positions.zero_()
        # Half amplitude: about as strong as the patches they are added to.
        positions[1:] = 0.5 * sine_positions(config.image_size // config.patch_size, config.width)
    return model.train()


def sine_positions(side: int, width: int) -> Tensor:
    """(side * side, width) sines and cosines of rows and columns, a quarter of the width each."""
    quarter = width // 4
    frequencies = 100.0 ** -(torch.arange(quarter) / quarter)
    phases = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([phases.sin(), phases.cos()], 1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return functional.pad(torch.cat([rows, columns], -1).flatten(0, 1), (0, width - 4 * quarter))


def image_features(model: CLIPModel, pixels: Tensor) -> ImageFeatures:
    """Both poolings of normalised (B, 3, H, W) float pixels, sides multiples of the patch (FMA spec 3.6)."""
    vision = model.vision_model
    tokens = vision.pre_layrnorm(vision.embeddings(pixels, interpolate_pos_encoding=True))
    tokens = vision.post_layernorm(vision.encoder(inputs_embeds=tokens).last_hidden_state)
    pooled = torch.stack([tokens[:, 1:].mean(1), tokens[:, 0]])
    patches, cls = functional.normalize(model.visual_projection(pooled).float(), dim=-1)
    return ImageFeatures(patches, cls)


def text_features(model: CLIPModel, ids: Tensor) -> Tensor:
    """(T, E) unit length, from (T, L) ids."""
    pooled = model.text_model(input_ids=ids).pooler_output
    return functional.normalize(model.text_projection(pooled).float(), dim=-1)
