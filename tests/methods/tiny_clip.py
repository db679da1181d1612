"""A CLIP with random weights, small enough for tests: the small model of spec fma-wsss section 11."""

from __future__ import annotations

import math

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, PreTrainedTokenizerFast

from weakly.foundation.clip import Clip

WORDS = (
    *("cow", "dog", "person", "with", "clothes", "people", "human", "sofa", "train", "bus", "bird", "avian", "teddy"),
    *("bear", "ground", "land", "grass", "tree", "a", "clean", "origami", "the", "there", "X", ".", ","),
)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Every word and every punctuation mark is a token; the end token does not have the largest id."""
    vocabulary = {word: number for number, word in enumerate(("<start>", "<end>", "<unknown>", *WORDS))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", unk_token="<unknown>", pad_token="<end>"
    )


def tiny_clip(seed: int = 0) -> Clip:
    """14x14 patches of 16 pixels, 4 vision blocks 128 wide, 3 text blocks 64 wide, 32 joint dimensions, scale 100."""
    tokenizer = word_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=224,
        patch_size=16,
        projection_dim=32,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=32))
        with torch.no_grad():  # the defaults are so small that every attention is flat and every text the same
            model.logit_scale.fill_(math.log(100))
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter *= 3
                elif "bias" in name:
                    parameter += torch.randn(parameter.shape) / 10
    return Clip(model, tokenizer, "tiny")
