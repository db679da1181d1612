"""The prompter: sizes, and agreement with PyTorch's own transformer layers."""

import pytest
import torch
from torch import nn

from weakly.methods.wps.model import ChannelNorm, DecoderLayer, EncoderLayer, Prompter

SMALL = {"embedding_channels": 12, "grid": (8, 6), "token_width": 10, "classes": 3, "queries": 5, "width": 16}
SMALL |= {"heads": 4, "layers": 2, "ffn": 24, "downsamples": 1}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_paper_size_has_12_717_609_parameters_where_the_paper_has_them() -> None:
    prompter = Prompter()
    assert count(prompter) == 12_717_609
    assert count(prompter.downsample) == 1_181_184
    assert count(prompter.encoder) == 4_738_560
    assert count(prompter.decoder) == 6_321_152
    assert prompter.position.numel() == 65_536
    assert count(prompter.queries) == 6_400
    assert count(prompter.class_head) == 10_537
    assert count(prompter.prompt_head) == 394_240


def test_point_and_box_together_widen_only_the_last_layer() -> None:
    assert count(Prompter(tokens=3)) == 12_717_609 + 131_328


def test_paper_size_shapes() -> None:
    with torch.no_grad():
        logits, tokens, _ = Prompter()(torch.randn(1, 256, 64, 64))
    assert logits.shape == (1, 25, 41)
    assert tokens.shape == (1, 25, 2, 256)


@pytest.mark.parametrize(("downsamples", "cells"), [(0, (8, 6)), (1, (4, 3)), (2, (2, 2))])
def test_every_convolution_halves_the_grid(downsamples: int, cells: tuple[int, int]) -> None:
    prompter = Prompter(**{**SMALL, "downsamples": downsamples})
    assert prompter.position.shape == (1, 16, *cells)
    logits, tokens, boxes = prompter(torch.randn(2, 12, 8, 6))
    assert logits.shape == (2, 5, 4)
    assert tokens.shape == (2, 5, 2, 10)
    assert boxes is None


def test_channel_norm_is_layer_norm_over_channels() -> None:
    x = torch.randn(2, 6, 3, 4)
    norm = ChannelNorm(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    expected = (x - mean) / (variance + 1e-6).sqrt() * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    assert torch.allclose(norm(x), expected, atol=1e-6)


def test_encoder_layer_without_positions_is_pytorchs() -> None:
    ours = EncoderLayer(16, 4, 24, 0.0).eval()
    nn.init.xavier_uniform_(ours.self_attn.in_proj_weight)
    theirs = nn.TransformerEncoderLayer(16, 4, 24, 0.0, batch_first=True, norm_first=False).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 7, 16)
    assert torch.allclose(ours(x, torch.zeros(1, 7, 16)), theirs(x), atol=1e-5)


def test_decoder_layer_without_positions_is_pytorchs() -> None:
    ours = DecoderLayer(16, 4, 24, 0.0).eval()
    for attention in (ours.self_attn, ours.multihead_attn):
        nn.init.xavier_uniform_(attention.in_proj_weight)
    theirs = nn.TransformerDecoderLayer(16, 4, 24, 0.0, batch_first=True, norm_first=False).eval()
    theirs.load_state_dict(ours.state_dict())
    x, memory = torch.randn(3, 5, 16), torch.randn(3, 7, 16)
    assert torch.allclose(ours(x, memory, memory, torch.zeros(1, 5, 16)), theirs(x, memory), atol=1e-5)


def test_positions_go_to_queries_and_keys_but_never_to_values() -> None:
    ours = DecoderLayer(16, 4, 24, 0.0).eval()
    reference = {
        name: nn.MultiheadAttention(16, 4, batch_first=True).eval() for name in ("self_attn", "multihead_attn")
    }
    for name, attention in reference.items():
        nn.init.xavier_uniform_(getattr(ours, name).in_proj_weight)
        attention.load_state_dict(getattr(ours, name).state_dict())
    x, memory, place, query = (torch.randn(2, n, 16) for n in (5, 7, 7, 5))
    t = ours.norm1(x + reference["self_attn"](x + query, x + query, x)[0])
    t = ours.norm2(t + reference["multihead_attn"](t + query, memory + place, memory)[0])
    t = ours.norm3(t + ours.linear2(torch.relu(ours.linear1(t))))
    assert torch.allclose(ours(x, memory, memory + place, query), t, atol=1e-5)


def test_training_and_evaluation_mode_agree_without_dropout_and_differ_with_it() -> None:
    x = torch.randn(2, 12, 8, 6)
    for dropout, same in ((0.0, True), (0.5, False)):
        prompter = Prompter(**SMALL, dropout=dropout)
        assert torch.allclose(prompter.train()(x).logits, prompter.eval()(x).logits) is same


def test_an_image_alone_is_the_image_in_a_batch() -> None:
    prompter = Prompter(**SMALL).eval()
    x = torch.randn(4, 12, 8, 6)
    together = prompter(x)
    for i in range(4):
        alone = prompter(x[i : i + 1])
        assert torch.allclose(alone.logits[0], together.logits[i], atol=1e-5)
        assert torch.allclose(alone.tokens[0], together.tokens[i], atol=1e-5)


def test_first_weights_are_those_of_the_paper() -> None:
    prompter = Prompter(**SMALL)
    assert not prompter.position.any()
    assert not prompter.encoder.layers[0].self_attn.in_proj_bias.any()
    bound = (6 / (16 + 48)) ** 0.5
    weight = prompter.encoder.layers[0].self_attn.in_proj_weight
    assert 0.9 * bound < weight.abs().max() <= bound


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="no multiple"):
        Prompter(**{**SMALL, "heads": 5})


def test_places_are_where_positions_start_and_part_of_what_cells_say() -> None:
    """Wider tokens are cut, narrower ones leave the rest of the width at zero."""
    places = torch.randn(12, 10)
    prompter = Prompter(**SMALL, places=places).eval()
    assert torch.equal(prompter.position[0, :10, 1, 2], places[1 * 3 + 2])
    assert not prompter.position[0, 10:].any()
    assert prompter.position.requires_grad
    assert Prompter(**{**SMALL, "width": 8}, places=places).position.shape == (1, 8, 4, 3)

    plain = Prompter(**SMALL).eval()
    plain.load_state_dict(prompter.state_dict())
    embeddings = torch.randn(2, 12, 8, 6)
    assert not torch.equal(prompter(embeddings).tokens, plain(embeddings).tokens)
    with torch.no_grad():
        for module in (prompter, plain):
            module.position.zero_()
    assert torch.equal(prompter(embeddings).tokens, plain(embeddings).tokens)
