"""Training: what changes and what does not, learning, and resuming."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import quiet_trainer
from lightning import Callback
from tiny_segmenter import rectangle_dataset, tiny_sam_folder

from weakly.errors import UserError
from weakly.foundation.sam import load_segmenter
from weakly.methods.base import Workspace
from weakly.methods.optimisation import Optimisation
from weakly.methods.wps import METHOD, WpsSettings
from weakly.methods.wps.learner import WpsLearner, build_prompter, cell_tokens
from weakly.methods.wps.losses import mask_loss
from weakly.methods.wps.settings import PRESETS, Jitter, preset
from weakly.methods.wps.targets import WpsData
from weakly.vocabulary import Vocabulary

Make = Callable[..., WpsLearner]
OPTIMISATION = Optimisation(lr=1e-3, warmup_steps=2, epochs=4, batch_size=4, seed=7)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[WpsSettings, WpsData]:
    folder = tmp_path_factory.mktemp("wps")
    settings = WpsSettings(
        segmenter=str(tiny_sam_folder(folder / "sam")),
        queries=6,
        width=32,
        heads=4,
        layers=1,
        ffn=64,
        downsamples=1,
        flip=True,
    )
    dataset = rectangle_dataset(folder / "images", 10)
    return settings, METHOD.prepare(settings, dataset, Workspace(folder / "run", folder / "features"))


@pytest.fixture
def make(prepared: tuple[WpsSettings, WpsData]) -> Make:
    def fresh(optimisation: Optimisation = OPTIMISATION, steps: int = 12, **changes: Any) -> WpsLearner:
        torch.manual_seed(0)
        settings = replace(prepared[0], **changes)
        return METHOD.learner(settings, Vocabulary.from_names(("Red", "Green", "Blue")), optimisation, steps)

    return fresh


class SaveAt(Callback):
    """A checkpoint in the middle of an epoch."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit(learner: WpsLearner, data: WpsData, folder: Path, resume: Path | None = None, **options: Any) -> Any:
    trainer = quiet_trainer(folder, **options)
    trainer.fit(learner, learner.loader(data, batch_size=4, shuffle=True, seed=7), ckpt_path=resume, weights_only=True)
    return trainer


def test_the_optimizer_holds_the_student_and_decays_all_of_it(make: Make) -> None:
    learner = make()
    optimizer = learner.configure_optimizers()["optimizer"]
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.Adam)
    assert {id(p) for p in group["params"]} == {id(p) for p in learner.student.parameters()}
    assert group["weight_decay"] == 1e-4


def test_the_first_step_changes_nothing_because_its_rate_is_zero(
    make: Make, prepared: tuple[WpsSettings, WpsData], tmp_path: Path
) -> None:
    learner = make()
    before = {k: v.clone() for k, v in learner.state_dict().items()}
    fit(learner, prepared[1], tmp_path, max_steps=1)
    assert all(torch.equal(before[k], v) for k, v in learner.state_dict().items())


def test_the_rate_follows_the_schedule_step_by_step(
    make: Make, prepared: tuple[WpsSettings, WpsData], tmp_path: Path
) -> None:
    trainer = fit(make(), prepared[1], tmp_path, max_steps=2)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3)
    trainer = fit(make(), prepared[1], tmp_path, max_epochs=4)
    assert trainer.global_step == 12
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("stop", [2, 3, 7])
def test_stopping_anywhere_and_resuming_ends_with_the_same_bytes(
    make: Make, prepared: tuple[WpsSettings, WpsData], tmp_path: Path, stop: int
) -> None:
    whole = make()
    fit(whole, prepared[1], tmp_path, max_epochs=4)
    keeper = SaveAt(stop, tmp_path / "stopped.ckpt")
    fit(make(), prepared[1], tmp_path, max_epochs=4, callbacks=[keeper])
    resumed = make()
    trainer = fit(resumed, prepared[1], tmp_path, tmp_path / "stopped.ckpt", max_epochs=4)
    assert trainer.global_step == 12
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_loss_starts_near_its_theory_and_falls(
    make: Make, prepared: tuple[WpsSettings, WpsData], tmp_path: Path
) -> None:
    learner = make(Optimisation(lr=2e-3, warmup_steps=0, schedule="constant"), steps=100)
    batch = prepared[1].__getitems__(list(range(10)))
    before = learner.loss(batch)
    assert before.classification.item() == pytest.approx(torch.tensor(4.0).log().item(), abs=0.6)  # ln(C + 1)
    fit(learner, prepared[1], tmp_path, max_epochs=25)
    assert learner.loss(batch).total < 0.7 * before.total


def test_validation_logs_the_loss_of_unmirrored_images(
    make: Make, prepared: tuple[WpsSettings, WpsData], tmp_path: Path
) -> None:
    learner, (_, data) = make(), prepared
    loaders = [learner.loader(data, batch_size=5, shuffle=shuffle, seed=0) for shuffle in (True, False)]
    assert [loader.sampler.variants for loader in loaders] == [2, 1]
    trainer = quiet_trainer(tmp_path)
    logged = trainer.validate(learner, loaders[1], verbose=False)[0]
    with torch.no_grad():
        expected = torch.stack([learner.loss(batch).total for batch in loaders[1]]).mean()
    assert logged["val/loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_training_step_asks_the_host_only_for_the_matching(
    make: Make, prepared: tuple[WpsSettings, WpsData], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted on the CPU by the calls that would wait for a GPU."""
    transfers = []
    for name in ("item", "cpu", "tolist", "__bool__", "__float__", "__int__", "nonzero"):
        original = getattr(torch.Tensor, name)

        def counted(*args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
            transfers.append(_name)
            return _original(*args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    learner, batch = make(), prepared[1].__getitems__([1, 2, 3])
    transfers.clear()
    learner.loss(batch).total.backward()
    assert transfers == ["cpu"]


def test_presets_are_made_of_settings_and_optimisation_that_exist() -> None:
    for name in PRESETS:
        sections = preset(name)
        WpsSettings(**sections.pop("settings", {}))
        Optimisation(**sections.pop("optimisation", {}))
        assert set(sections) <= {"data"}
    official = Optimisation(**preset("official")["optimisation"])
    assert (official.epochs, official.t_total, official.sampler_seed) == (149, 38_370, "per_rank")
    assert preset("paper")["optimisation"]["schedule"] == "constant"
    with pytest.raises(UserError, match="no WPS-SAM preset"):
        preset("best")


@pytest.mark.parametrize(
    ("field", "value"), [("queries", 0), ("heads", 7), ("supervision", "mask"), ("score_threshold", 2.0)]
)
def test_impossible_settings_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"settings.{field}"):
        WpsSettings(**{field: value})


def test_auxiliary_losses_are_those_of_the_earlier_layers_alone(
    make: Make, prepared: tuple[WpsSettings, WpsData]
) -> None:
    batch = prepared[1].__getitems__([0, 1, 2])
    plain, aux = make(layers=3), make(layers=3, aux_weight=0.5)
    assert torch.equal(plain.training_loss(batch)[0], plain.loss(batch).total)
    total, last = aux.training_loss(batch)
    states = aux.student.states(batch.embeddings)
    earlier = [aux._compare(aux.student.answer(states[layer]), batch).total for layer in (0, 1)]
    torch.testing.assert_close(total, last.total + 0.5 * (earlier[0] + earlier[1]) / 2)
    torch.testing.assert_close(last.total, plain.loss(batch).total)


def test_positions_can_start_as_the_segmenters_own_tokens_of_the_cells(prepared: tuple[WpsSettings, WpsData]) -> None:
    """Neighbours are alike, the mean is gone, and differences are those of the teacher's tokens."""
    segmenter = load_segmenter(prepared[0].segmenter)
    _, rows, columns = segmenter.embedding_shape
    tokens = cell_tokens(segmenter, 1).view(rows // 2, columns // 2, -1)
    assert torch.allclose(tokens.mean((0, 1)), torch.zeros(tokens.shape[-1]), atol=1e-5)
    cell = segmenter.side / (columns // 2)
    corners = segmenter.point_tokens(torch.tensor([[0.5 * cell, 0.5 * cell], [1.5 * cell, 0.5 * cell]]))[:, 0]
    assert torch.allclose(tokens[0, 1] - tokens[0, 0], corners[1] - corners[0], atol=1e-5)
    student = build_prompter(replace(prepared[0], position="tokens"), 3, segmenter)
    assert student.placed
    assert torch.allclose(student.position[0, : tokens.shape[-1], 0, 1], tokens[0, 1][: student.position.shape[1]])


def test_the_loss_of_masks_is_least_for_the_teachers_own_tokens(
    make: Make, prepared: tuple[WpsSettings, WpsData]
) -> None:
    learner, batch = make(), prepared[1].__getitems__([0, 1, 2])
    segmenter = load_segmenter(prepared[0].segmenter)
    prompts = learner.student(batch.embeddings)
    matches = learner._match(prompts, batch)

    def loss(tokens: torch.Tensor, pairs: int = 64) -> torch.Tensor:
        return mask_loss(segmenter, batch.embeddings, tokens, batch.tokens, matches, pairs)

    right = prompts.tokens.detach().clone()
    right[matches.image, matches.query] = batch.tokens[matches.image, matches.instance]
    right.requires_grad_()
    best = loss(right)
    assert best < loss(prompts.tokens)
    best.backward()
    assert right.grad.abs().max() < 1e-3  # Dice of probabilities is not quite stationary there
    loss(prompts.tokens, pairs=1).backward()
    touched = {name for name, weight in learner.student.named_parameters() if weight.grad is not None}
    assert any(name.startswith("prompt_head") for name in touched)
    assert not any(name.startswith("class_head") for name in touched)
    assert all(weight.grad is None for weight in segmenter.parameters())
    nobody = matches._replace(**{name: getattr(matches, name)[:0] for name in ("image", "query", "instance")})
    assert mask_loss(segmenter, batch.embeddings, prompts.tokens, batch.tokens, nobody, 8) == 0


def test_masks_weigh_in_as_told(make: Make, prepared: tuple[WpsSettings, WpsData]) -> None:
    batch = prepared[1].__getitems__([0, 1, 2])
    plain, masked = make().training_loss(batch), make(lambda_mask=0.5, mask_pairs=3).training_loss(batch)
    assert plain[1].masks is None
    torch.testing.assert_close(masked[0], plain[0] + 0.5 * masked[1].masks)


def test_moved_views_train_and_resume_with_the_same_bytes(
    make: Make, prepared: tuple[WpsSettings, WpsData], tmp_path: Path
) -> None:
    views = {"jitter": Jitter(shift=0.25, zoom=1.2), "lambda_box": 1.0}
    whole, data = make(**views), prepared[1]
    fit(whole, data, tmp_path, max_epochs=2)
    fit(make(**views), data, tmp_path, max_epochs=2, callbacks=[SaveAt(4, tmp_path / "stopped.ckpt")])
    resumed = make(**views)
    fit(resumed, data, tmp_path, tmp_path / "stopped.ckpt", max_epochs=2)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
