"""What every method promises, as tests. A method's test module subclasses :class:`MethodContract`."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import lightning
import numpy as np
import pytest
import torch

from weakly.data.dataset import Dataset
from weakly.methods.base import ImageSource, Learner, Method, Predictor, Skipped, Workspace
from weakly.methods.optimisation import Optimisation
from weakly.segmentation import Segmentation


def same_segmentation(a: Segmentation, b: Segmentation, *, score_tolerance: float = 0.0) -> bool:
    """Equal masks, labels, boxes and label map; scores up to a tolerance."""
    maps_agree = (a.label_map is None) == (b.label_map is None)
    if maps_agree and a.label_map is not None:
        maps_agree = np.array_equal(a.label_map, b.label_map)
    return (
        a.size == b.size
        and np.array_equal(a.labels, b.labels)
        and [rle["counts"] for rle in a.rles] == [rle["counts"] for rle in b.rles]
        and np.array_equal(a.boxes, b.boxes)
        and np.allclose(a.scores, b.scores, rtol=0, atol=score_tolerance)
        and bool(maps_agree)
    )


class MethodContract:
    """Subclasses set ``method`` and fill in the fixtures ``settings``, ``dataset`` and ``sources``.

    ``dataset`` has at least four images of different sizes, one of them without labels.
    """

    method: ClassVar[Method]
    optimisation: ClassVar[Optimisation] = Optimisation(
        lr=1e-4, warmup_steps=0, epochs=2, batch_size=4, schedule="constant", seed=3
    )

    @pytest.fixture
    def settings(self) -> Any:
        raise NotImplementedError

    @pytest.fixture
    def dataset(self) -> Dataset:
        raise NotImplementedError

    @pytest.fixture
    def sources(self, dataset: Dataset) -> list[ImageSource]:
        raise NotImplementedError

    @pytest.fixture
    def workspace(self, tmp_path: Path) -> Workspace:
        torch.set_num_threads(1)
        return Workspace(run=tmp_path / "run", features=tmp_path / "features", feature_dtype="float32")

    def frozen(self, settings: Any, workspace: Workspace) -> torch.nn.Module:
        """The frozen model behind the method."""
        raise NotImplementedError

    def silence(self, learner: Learner) -> None:
        """Change the student so that it sees nothing in any image."""
        raise NotImplementedError

    def rouse(self, learner: Learner) -> None:
        """Change the student so that it sees something in every image, so that no test here is empty."""
        raise NotImplementedError

    # Helpers ----------------------------------------------------------------------------------------------------

    def fresh(self, settings: Any, dataset: Dataset) -> Learner:
        torch.manual_seed(self.optimisation.seed)
        return self.method.learner(settings, dataset.vocabulary, self.optimisation, 100)

    def roused(self, settings: Any, dataset: Dataset) -> Learner:
        learner = self.fresh(settings, dataset)
        self.rouse(learner)
        return learner

    def trained(self, settings: Any, dataset: Dataset, workspace: Workspace, epochs: int = 2) -> Learner:
        data = self.method.prepare(settings, dataset, workspace)
        learner = self.fresh(settings, dataset)
        loader = learner.loader(data, batch_size=4, shuffle=True, seed=self.optimisation.seed)
        quiet_trainer(workspace.run, max_epochs=epochs).fit(learner, loader)
        return learner

    def reloaded(self, learner: Learner, folder: Path, workspace: Workspace) -> Predictor:
        self.method.save(learner, folder, {"data": "test"})
        return self.method.load(folder, workspace)

    # Training ---------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("bfloat16", [False, True], ids=["32-true", "bf16-mixed"])
    def test_one_step_gives_every_trained_parameter_a_finite_gradient(
        self, settings: Any, dataset: Dataset, workspace: Workspace, bfloat16: bool
    ) -> None:
        learner = self.fresh(settings, dataset)
        data = self.method.prepare(settings, dataset, workspace)
        batch = next(iter(learner.loader(data, batch_size=len(dataset), shuffle=False, seed=0)))
        with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            warnings.simplefilter("ignore")  # there is no trainer to log to
            loss = learner.training_step(batch, 0)
        loss.backward()
        assert torch.isfinite(loss)
        trained = [p for p in learner.parameters() if p.requires_grad]
        assert trained
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)

    def test_images_that_are_only_looked_at_need_no_views_of_training(
        self, settings: Any, dataset: Dataset, workspace: Workspace
    ) -> None:
        learner = self.fresh(settings, dataset)
        batches = [
            next(
                iter(learner.loader(self.method.prepare(each, dataset, workspace), batch_size=4, shuffle=False, seed=0))
            )
            for each in (settings, self.method.unaugmented(settings))
        ]
        first, second = (tensors_in(batch) for batch in batches)
        assert len(first) == len(second) > 0
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))

    def test_settings_of_prediction_are_settings(self, settings: Any) -> None:
        assert self.method.predicts_with
        for name in self.method.predicts_with:
            operator.attrgetter(name)(settings)

    def test_a_student_is_loaded_with_other_settings(
        self, settings: Any, dataset: Dataset, workspace: Workspace, tmp_path: Path
    ) -> None:
        learner = self.roused(settings, dataset)
        own = self.reloaded(learner, tmp_path / "student", workspace)
        other = self.method.load(tmp_path / "student", workspace, settings)
        image = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8)
        (first,), (second,) = (predictor.predict_images([image]) for predictor in (own, other))
        assert same_segmentation(first, second)

    def test_only_the_student_is_in_the_learner(self, settings: Any, dataset: Dataset) -> None:
        learner = self.fresh(settings, dataset)
        assert all(name.startswith("student.") for name in learner.state_dict())

    def test_frozen_stays_frozen(self, settings: Any, dataset: Dataset, workspace: Workspace) -> None:
        before = {k: v.clone() for k, v in self.frozen(settings, workspace).state_dict().items()}
        student = {k: v.clone() for k, v in self.fresh(settings, dataset).state_dict().items()}
        learner = self.trained(settings, dataset, workspace)
        after = self.frozen(settings, workspace).state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before)
        assert any(not torch.equal(student[k], v) for k, v in learner.state_dict().items())

    def test_same_seed_same_student(self, settings: Any, dataset: Dataset, workspace: Workspace) -> None:
        first = self.trained(settings, dataset, workspace).state_dict()
        second = self.trained(settings, dataset, workspace).state_dict()
        assert all(torch.equal(first[k], second[k]) for k in first)

    def test_nothing_frozen_is_computed_twice(
        self, settings: Any, dataset: Dataset, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.method.prepare(settings, dataset, workspace)

        def refuse(*_: Any) -> None:
            pytest.fail("an image was encoded again")

        monkeypatch.setattr(self.frozen(settings, workspace), "encode", refuse)
        self.method.prepare(settings, dataset, workspace)

    def test_an_unreadable_training_image_costs_only_itself(
        self, settings: Any, dataset: Dataset, workspace: Workspace
    ) -> None:
        dataset[1].path.write_bytes(b"no image")
        data = self.method.prepare(settings, dataset, workspace)
        assert len(data) == len(dataset) - 1

    # Prediction -------------------------------------------------------------------------------------------------

    def test_save_and_load_predicts_the_same(
        self, settings: Any, dataset: Dataset, workspace: Workspace, sources: list[ImageSource], tmp_path: Path
    ) -> None:
        learner = self.trained(settings, dataset, workspace)
        self.rouse(learner)
        first = list(self.reloaded(learner, tmp_path / "a", workspace).predict(sources, batch_size=4))
        second = list(self.reloaded(learner, tmp_path / "b", workspace).predict(sources, batch_size=4))
        assert all(same_segmentation(a, b) for a, b in zip(first, second, strict=True))
        assert sum(len(s) for s in first) > 0

    def test_an_image_alone_is_the_image_in_a_batch(
        self, settings: Any, dataset: Dataset, workspace: Workspace, sources: list[ImageSource], tmp_path: Path
    ) -> None:
        # Without stored features, so that encoding is part of the comparison.
        bare = replace(workspace, features=tmp_path / "none")
        predictor = self.reloaded(self.roused(settings, dataset), tmp_path / "s", bare)
        together = list(predictor.predict(sources, batch_size=len(sources)))
        alone = [next(iter(predictor.predict([source], batch_size=1))) for source in sources]
        for a, b in zip(together, alone, strict=True):
            assert a.size == b.size
            assert np.array_equal(a.labels, b.labels)
            assert np.allclose(a.scores, b.scores, atol=1e-4)
            differing = np.mean(a.masks() != b.masks()) if len(a) else 0.0
            assert differing < 1e-3

    def test_results_have_the_original_size_and_aligned_fields(
        self, settings: Any, dataset: Dataset, workspace: Workspace, sources: list[ImageSource], tmp_path: Path
    ) -> None:
        predictor = self.reloaded(self.roused(settings, dataset), tmp_path / "s", workspace)
        for sample, result in zip(dataset, predictor.predict(sources, batch_size=3), strict=True):
            assert result.size == sample.size
            assert result.masks().shape == (len(result), *sample.size)
            assert result.to_label_map(len(dataset.vocabulary)).shape == sample.size
            assert ((result.scores >= 0) & (result.scores <= 1)).all()
            assert ((result.labels >= 0) & (result.labels < len(dataset.vocabulary))).all()

    def test_an_unreadable_image_is_skipped_and_disturbs_no_other(
        self, settings: Any, dataset: Dataset, workspace: Workspace, sources: list[ImageSource], tmp_path: Path
    ) -> None:
        predictor = self.reloaded(self.roused(settings, dataset), tmp_path / "s", workspace)
        good = list(predictor.predict(sources, batch_size=2))
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"\x89PNG, not really")
        bad = replace(sources[0], image_id="bad", path=broken, read=_reader(broken))
        mixed = list(predictor.predict([sources[0], bad, *sources[1:]], batch_size=2))
        skipped = mixed.pop(1)
        assert isinstance(skipped, Skipped)
        assert skipped.image_id == "bad"
        assert str(broken) in skipped.reason
        for a, b in zip(good, mixed, strict=True):
            assert a.size == b.size
            assert np.array_equal(a.labels, b.labels)

    def test_seeing_nothing_is_an_empty_aligned_result(
        self, settings: Any, dataset: Dataset, workspace: Workspace, sources: list[ImageSource], tmp_path: Path
    ) -> None:
        learner = self.fresh(settings, dataset)
        self.silence(learner)
        results = list(self.reloaded(learner, tmp_path / "s", workspace).predict(sources, batch_size=3))
        assert [len(result) for result in results] == [0] * len(sources)
        assert [result.size for result in results] == [sample.size for sample in dataset]
        background = len(dataset.vocabulary)
        assert all((result.to_label_map(background) == background).all() for result in results)

    def test_predicting_no_image_is_no_error(
        self, settings: Any, dataset: Dataset, workspace: Workspace, tmp_path: Path
    ) -> None:
        predictor = self.reloaded(self.roused(settings, dataset), tmp_path / "s", workspace)
        assert list(predictor.predict([], batch_size=4)) == []

    def test_references_give_one_result_per_image(self, settings: Any, dataset: Dataset, workspace: Workspace) -> None:
        for score in self.method.references(settings, dataset, workspace):
            assert [result.size for result in score.results()] == [sample.size for sample in dataset]


def quiet_trainer(folder: Path, **options: Any) -> lightning.Trainer:
    """Lightning on the CPU without files or talk."""
    return lightning.Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def _reader(path: Path) -> Any:
    from weakly.data.images import read_image  # noqa: PLC0415

    return lambda: read_image(path)


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors of a batch, in their order, however deep they lie."""
    if isinstance(value, torch.Tensor):
        return [value]
    if is_dataclass(value):
        value = [getattr(value, each.name) for each in fields(value)]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, Sequence) else ()
    return [] if isinstance(value, str) else [tensor for part in parts for tensor in tensors_in(part)]
