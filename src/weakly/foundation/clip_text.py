"""The text side of a CLIP: the tokenizer of its checkpoint, and the encoder from token embeddings on.

The encoder is causal and the embedding of a text is read at its first end token, so whatever follows that token
changes nothing: texts are padded with it, and sequences are cut after the last of them (spec fma-wsss section 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel, CLIPTextConfig, PreTrainedTokenizerBase

from weakly.errors import UserError

_UNTOLD_END = 2
"""What old configurations, OpenAI's among them, give for the end token whatever it is."""


def load_tokenizer(source: str, config: CLIPTextConfig, *, local: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, of whatever class its files name.

    Args:
        source: folder or hub id.
        config: of the text encoder that reads its tokens.
        local: never use the network.

    Raises:
        UserError: the tokenizer is absent or damaged, or it is not this encoder's.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    except Exception as error:  # the tokenizers library has no class of its own for damaged files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
        raise UserError(
            f"The tokenizer of CLIP {source!r} could not be loaded ({reason}); restore its files."
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what the library makes where there are no files
        raise UserError(f"CLIP {source!r} has no tokenizer; add its tokenizer.json, or vocab.json and merges.txt.")
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"The tokenizer of CLIP {source!r} knows {len(tokenizer)} tokens and the text encoder {config.vocab_size}; "
            "restore the tokenizer that belongs to these weights."
        )
    told = config.eos_token_id
    is_told = isinstance(told, int) and told != _UNTOLD_END and told < config.vocab_size
    if tokenizer.eos_token_id is None or (is_told and told != tokenizer.eos_token_id):
        raise UserError(
            f"The tokenizer of CLIP {source!r} ends texts with token {tokenizer.eos_token_id} and config.json says "
            f"{told}; restore the tokenizer that belongs to these weights."
        )
    return tokenizer


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], context: int) -> Tensor:
    """Texts to (N, context) int64 ids: start, text, end, then end tokens up to the length of the context.

    Raises:
        UserError: a text has more tokens than the context.
    """
    rows: list[list[int]] = tokenizer(list(texts), verbose=False).input_ids if texts else []
    for index, (row, text) in enumerate(zip(rows, texts, strict=True)):
        if len(row) > context:
            raise UserError(f"Text {index} ({text[:60]!r}) has {len(row)} tokens and CLIP reads {context}; shorten it.")
    end = tokenizer.eos_token_id
    padded = [row + [end] * (context - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.int64).view(len(rows), context)


def end_positions(ids: Tensor, end: int) -> Tensor:
    """(N,) int64: where the token ``end`` first stands in (N, T) ids; it need not be the largest id."""
    return (ids == end).int().argmax(1)


def encode_embeddings(model: CLIPModel, embeddings: Tensor, eot: Tensor) -> Tensor:
    """Token embeddings to text embeddings; only the first ``max(eot) + 1`` tokens are computed.

    Args:
        model: with eager attention, which takes the causal mask as a tensor.
        embeddings: (N, T, W) float, without positions; T at most the context or, if longer, ended within it.
        eot: (N,) int64, where every text ends.

    Returns:
        (N, E) float32, not normalised, differentiable in ``embeddings``.

    Raises:
        UserError: a text ends after the context.
    """
    projection, text = model.text_projection, model.text_model
    if len(embeddings) == 0:
        return torch.zeros(0, projection.out_features, device=embeddings.device)
    eot = eot.to(embeddings.device)
    length, context = int(eot.max()) + 1, text.config.max_position_embeddings
    if length > context:
        raise UserError(
            f"Prompt {int(eot.argmax())} has {length} tokens and CLIP reads {context}; shorten the name or the context."
        )
    hidden = text.embeddings(inputs_embeds=embeddings[:, :length])
    later = torch.full((1, 1, length, length), torch.finfo(hidden.dtype).min, device=hidden.device).triu(1)
    hidden = text.encoder(inputs_embeds=hidden, attention_mask=later).last_hidden_state
    ends = hidden[torch.arange(len(eot), device=eot.device), eot]
    features: Tensor = projection(text.final_layer_norm(ends))
    return features.float()
