"""Student folders, and weights of the released code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_segmenter import tiny_segmenter

from weakly.errors import UserError
from weakly.foundation.sam import SamSegmenter
from weakly.methods.wps.learner import build_prompter
from weakly.methods.wps.model import Prompter
from weakly.methods.wps.pretrained import from_pretrained, import_official, read_official, save_pretrained
from weakly.methods.wps.settings import WpsSettings
from weakly.vocabulary import Category, Vocabulary

SETTINGS = WpsSettings(queries=5, width=32, heads=4, layers=1, ffn=32, downsamples=1)
VOCABULARY = Vocabulary((Category("Head", "Dog", 7), Category("Tail", "Dog", 9), Category("Wing")))


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> SamSegmenter:
    return tiny_segmenter(tmp_path_factory.mktemp("sam"))


@pytest.fixture
def saved(segmenter: SamSegmenter, tmp_path: Path) -> tuple[Path, Prompter]:
    student = build_prompter(SETTINGS, 3, segmenter)
    card = {"data": {"name": "rectangles"}, "dataset41 mIoU, val": 0.51239}
    save_pretrained(tmp_path / "student", student, SETTINGS, VOCABULARY, segmenter.fingerprint, card)
    return tmp_path / "student", student


def test_everything_comes_back(saved: tuple[Path, Prompter], segmenter: SamSegmenter) -> None:
    folder, student = saved
    pretrained = from_pretrained(folder)
    assert pretrained.settings == SETTINGS
    assert pretrained.vocabulary == VOCABULARY
    assert pretrained.segmenter == ("bundled", segmenter.fingerprint)
    back = pretrained.prompter(segmenter).state_dict()
    assert all(torch.equal(back[name], value) for name, value in student.state_dict().items())


def test_the_card_names_categories_segmenter_and_what_it_is_given(saved: tuple[Path, Prompter]) -> None:
    card = (saved[0] / "README.md").read_text()
    for words in (
        "Head, Tail, Wing",
        "`bundled`",
        "weak labels alone: **box**",
        "| data.name | rectangles |",
        "0.5124",
    ):
        assert words in card


def test_the_card_says_when_points_were_strong_labels(segmenter: SamSegmenter, tmp_path: Path) -> None:
    settings = WpsSettings(supervision="point", point_source="mask_centroid")
    save_pretrained(tmp_path, build_prompter(SETTINGS, 3, segmenter), settings, VOCABULARY, "f")
    assert "strong supervision" in (tmp_path / "README.md").read_text()


def test_another_segmenter_is_refused(saved: tuple[Path, Prompter], tmp_path: Path) -> None:
    other = tiny_segmenter(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="was trained on segmenter 'bundled'"):
        from_pretrained(saved[0]).prompter(other)


def change_config(folder: Path, change: Callable[[dict], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_a_config_without_its_segmenter_is_refused(saved: tuple[Path, Prompter]) -> None:
    change_config(saved[0], lambda config: config["segmenter"].pop("fingerprint"))
    with pytest.raises(UserError, match="lacks a key.*fingerprint"):
        from_pretrained(saved[0])


def test_settings_that_do_not_fit_the_weights_are_refused(
    saved: tuple[Path, Prompter], segmenter: SamSegmenter
) -> None:
    change_config(saved[0], lambda config: config["settings"].update(queries=6))
    with pytest.raises(UserError, match="queries.weight"):
        from_pretrained(saved[0]).prompter(segmenter)


def official_state(queries: int = 7, classes: int = 5, tokens: int = 2) -> dict[str, torch.Tensor]:
    """Names and shapes of a released checkpoint, at width 16 with 2 + 2 layers."""
    d, ffn = 16, 24
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, d, 4, 4),
        "query_embed.weight": (queries, d),
        "class_embed.weight": (classes + 1, d),
        "class_embed.bias": (classes + 1,),
        "coords_embed.0.weight": (2 * d, d),
        "coords_embed.0.bias": (2 * d,),
        "coords_embed.2.weight": (tokens * d, 2 * d),
        "coords_embed.2.bias": (tokens * d,),
        "prompter.decoder.norm.weight": (d,),
        "prompter.decoder.norm.bias": (d,),
        "SAM_model.mask_decoder.iou_token.weight": (1, d),
    }
    for index in (0, 3):
        shapes |= {f"conv_layers.{index}.weight": (d, d, 3, 3), f"conv_layers.{index}.bias": (d,)}
    for index in (1, 4):
        shapes |= {f"conv_layers.{index}.weight": (d,), f"conv_layers.{index}.bias": (d,)}
    for side, attentions, norms in (("encoder", ("self_attn",), 2), ("decoder", ("self_attn", "multihead_attn"), 3)):
        for layer in range(2):
            base = f"prompter.{side}.layers.{layer}"
            shapes |= {f"{base}.linear1.weight": (ffn, d), f"{base}.linear1.bias": (ffn,)}
            shapes |= {f"{base}.linear2.weight": (d, ffn), f"{base}.linear2.bias": (d,)}
            for name in attentions:
                shapes |= {f"{base}.{name}.in_proj_weight": (3 * d, d), f"{base}.{name}.in_proj_bias": (3 * d,)}
                shapes |= {f"{base}.{name}.out_proj.weight": (d, d), f"{base}.{name}.out_proj.bias": (d,)}
            for n in range(1, norms + 1):
                shapes |= {f"{base}.norm{n}.weight": (d,), f"{base}.norm{n}.bias": (d,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def test_released_weights_map_onto_the_prompter() -> None:
    state = official_state()
    student = import_official(state, heads=4)
    logits, tokens, _ = student(torch.randn(2, 16, 16, 16))
    assert logits.shape == (2, 7, 6)
    assert tokens.shape == (2, 7, 2, 16)
    assert torch.equal(student.position, state["pos_embed"])
    assert torch.equal(student.downsample[3].weight, state["conv_layers.3.weight"])
    assert torch.equal(student.decoder.layers[1].norm3.bias, state["prompter.decoder.layers.1.norm3.bias"])
    assert torch.equal(student.prompt_head[2].weight, state["coords_embed.2.weight"])


def test_a_released_checkpoint_file(tmp_path: Path) -> None:
    state = official_state()
    torch.save({"model": state}, tmp_path / "best_ckpt.pth")
    student = read_official(tmp_path / "best_ckpt.pth")
    assert torch.equal(student.queries.weight, state["query_embed.weight"])


def test_what_is_no_released_checkpoint_is_refused(tmp_path: Path) -> None:
    state = official_state()
    with pytest.raises(UserError, match="no WPS-SAM checkpoint"):
        import_official({"weight": torch.zeros(1)})
    with pytest.raises(UserError, match="do not fit"):
        import_official({k: v for k, v in state.items() if k != "class_embed.bias"}, heads=4)
    with pytest.raises(UserError, match="cannot be read as weights"):
        read_official(tmp_path / "missing.pth")
    torch.save(Path("object"), tmp_path / "code.pth")
    with pytest.raises(UserError, match="more than weights"):
        read_official(tmp_path / "code.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(UserError, match="no state dictionary"):
        read_official(tmp_path / "list.pth")
