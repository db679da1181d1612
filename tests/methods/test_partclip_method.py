"""PartCLIPSeg keeps every promise of a method; what it refuses and leaves out, and other names without training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
import yaml
from contract import MethodContract, quiet_trainer
from tiny_partclip import VOCABULARY, part_dataset, tiny_clipseg_folder, tiny_settings
from tiny_segmenter import sources_of
from torch.nn import functional

from weakly.data.dataset import Dataset
from weakly.data.menagerie.kinds import KINDS
from weakly.data.menagerie.write_kinds import KIND_CLASSES
from weakly.data.part_lists import part_list
from weakly.errors import UserError
from weakly.methods.base import ImageSource, Learner, Predictor, Workspace
from weakly.methods.optimisation import Optimisation, lr_multiplier
from weakly.methods.partclip import METHOD, PartClipSettings, build_student, untrained_student
from weakly.methods.partclip.inference import LabelMap
from weakly.methods.partclip.names import part_names
from weakly.methods.partclip.predictor import PartClipPredictor, oracle_results, to_segmentation, true_objects
from weakly.methods.partclip.presets import OFFICIAL_SWITCHES, OPTIMISATION, PRESETS
from weakly.methods.partclip.settings import LossWeights, Switches
from weakly.methods.partclip.taps import TapEncoder, frozen_encoder
from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary

COMPAT = Switches(**OFFICIAL_SWITCHES)  # type: ignore[arg-type]
C = len(VOCABULARY)


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clipseg_folder(tmp_path_factory.mktemp("clipseg"))


def space(folder: Path, **changes: Any) -> Workspace:
    return Workspace(run=folder / "run", features=folder / "features", feature_dtype="float32", **changes)


class TestPartClip(MethodContract):
    method = METHOD
    optimisation = Optimisation(
        lr=1e-3, optimizer="adamw", warmup_steps=0, epochs=2, batch_size=4, schedule="constant", seed=3
    )

    @pytest.fixture(params=["fixed", "compat", "clipseg"])
    def settings(self, clipseg: Path, request: pytest.FixtureRequest) -> PartClipSettings:
        changes: dict[str, dict[str, Any]] = {
            "fixed": {"unseen": ("ring",)},
            "compat": {"switches": COMPAT, "flip": False},
            "clipseg": {"architecture": "clipseg"},
        }
        return tiny_settings(clipseg, **changes[request.param])

    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Dataset:
        return part_dataset(tmp_path / "images", 5)

    @pytest.fixture
    def sources(self, dataset: Dataset) -> list[ImageSource]:
        return sources_of(dataset)

    def frozen(self, settings: PartClipSettings, workspace: Workspace) -> torch.nn.Module:
        return frozen_encoder(settings.clipseg, settings.side, workspace.device)

    def silence(self, learner: Learner) -> None:
        self._decide(learner, background=True)

    def rouse(self, learner: Learner) -> None:
        self._decide(learner, background=False)

    @torch.no_grad()
    def _decide(self, learner: Learner, *, background: bool) -> None:
        """Make masks depend on words alone, then find a background that wins everywhere, or nowhere."""
        student, settings = learner.student, learner.settings
        for reduce in student.decoder.reduces:
            reduce.weight.zero_()
            reduce.bias.zero_()
        mix, *enlarge = (layer for layer in student.decoder.transposed_convolution if hasattr(layer, "weight"))
        mix.weight *= torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
        for layer in enlarge:
            layer.weight.copy_(layer.weight[:, :, :1, :1].expand_as(layer.weight))
        encoder = frozen_encoder(settings.clipseg, settings.side)
        names = part_names(learner.vocabulary)
        encoded = student.encode_names(encoder.clipseg, names)
        texts = (encoded if settings.architecture == "clipseg" else encoded.embeddings[encoded.parts :])[:-1]
        candidates = 3 * torch.randn(200, texts.shape[1], generator=torch.Generator().manual_seed(0))
        blank = student.reduce(torch.zeros(1, 3, encoder.embedding_shape[2], encoder.clipseg.width))
        logits = student.prompt_logits(student.run(blank, torch.cat([texts, candidates])))[0, :, 0, 0]
        margins = logits[len(texts) :] - logits[: len(texts)].max()
        margins = margins if background else -margins
        assert margins.max() > 1e-3
        student.background.copy_(candidates[margins.argmax()])


@pytest.mark.parametrize("entries", ["skip", "resample"])
def test_images_without_a_seen_part_are_left_out_or_replaced_and_never_encoded(
    clipseg: Path, tmp_path: Path, entries: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = part_dataset(tmp_path / "images", 8, empty=2)
    settings = tiny_settings(clipseg, unseen=("disk",), flip=False, switches=Switches(none_entries=entries))
    encoded, notes = [], []
    encode = TapEncoder.encode
    monkeypatch.setattr(TapEncoder, "encode", lambda self, x: (encoded.append(len(x)), encode(self, x))[1])
    data = METHOD.prepare(settings, dataset, space(tmp_path, note=notes.append))
    assert sum(encoded) == 3, "2, 4 and 6 show a box"
    assert len(data) == (3 if entries == "skip" else 8) and data.skipped == ()
    assert notes[0].startswith("5 of 8 images of train show no seen part") and "train-0.png" in notes[0]
    classes = torch.cat([data[i].classes for i in range(len(data))])
    assert ((classes < 2).flatten(1).sum(1) > 0).all()


def test_what_cannot_be_trained_on_is_one_sentence(clipseg: Path, tmp_path: Path) -> None:
    dataset = part_dataset(tmp_path / "images", 3)
    for unseen, sentence in ((("fox",), "names 'fox'"), (("box", "disk", "ring"), "names every object")):
        with pytest.raises(UserError, match=sentence):
            METHOD.prepare(tiny_settings(clipseg, unseen=unseen), dataset, space(tmp_path))
    with pytest.raises(UserError, match=r"No image of boxes \(train\) has a mask of a part of a seen object"):
        METHOD.prepare(tiny_settings(clipseg, unseen=("box", "disk")), dataset, space(tmp_path))
    for sample in dataset:
        sample.path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"No image of boxes \(train\) can be read"):
        METHOD.prepare(tiny_settings(clipseg), dataset, space(tmp_path))
    with pytest.raises(UserError, match="There is no CLIPSeg at"):
        METHOD.prepare(tiny_settings(tmp_path / "nowhere"), dataset, space(tmp_path))


def test_compat_reads_training_images_otherwise_and_prediction_never_does(
    clipseg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, workspace = part_dataset(tmp_path / "images", 3), space(tmp_path)
    METHOD.prepare(tiny_settings(clipseg, switches=COMPAT), dataset, workspace)
    METHOD.prepare(tiny_settings(clipseg, flip=False), dataset, workspace)
    stores = [json.loads(path.read_text())["variant"] for path in workspace.features.glob("*/store.json")]
    assert sorted(stores) == ["", "bgrshort800", "bgrshort800hflip"]
    untrained_student(tmp_path / "student", "box: head", tiny_settings(clipseg, switches=COMPAT))
    monkeypatch.setattr(TapEncoder, "encode", lambda *_: pytest.fail("stored taps were not used"))
    results = list(METHOD.load(tmp_path / "student", workspace).predict(sources_of(dataset)))
    assert all(isinstance(result, Segmentation) for result in results)


class TestOptimisation:
    def test_normalisation_and_tables_do_not_decay_and_frozen_tensors_do_not_train(self, clipseg: Path) -> None:
        settings = tiny_settings(clipseg, switches=COMPAT)
        learner = METHOD.learner(settings, VOCABULARY, Optimisation(**OPTIMISATION), 100)
        (optimizer,) = [learner.configure_optimizers()["optimizer"]]
        named = {id(parameter): name for name, parameter in learner.student.named_parameters()}
        decays = {
            named[id(parameter)]: group["weight_decay"]
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        exempt = {name for name, decay in decays.items() if decay == 0}
        assert exempt == {name for name in decays if "layer_norm" in name or "_embedding." in name}
        assert {decays[name] for name in decays.keys() - exempt} == {1e-4}
        assert named.keys() - {id(p) for g in optimizer.param_groups for p in g["params"]} == {
            id(learner.student.background)
        }

    def test_the_published_schedule(self) -> None:
        """Spec section 4: lr (1 - t / 20000)^0.9, no warm-up, clipped at 0.01, in every preset."""
        for name in PRESETS:
            optimisation = Optimisation(**PRESETS[name]["optimisation"])
            assert (optimisation.optimizer, optimisation.batch_size, optimisation.grad_clip) == ("adamw", 8, 0.01)
            rates = [
                optimisation.lr
                * lr_multiplier(step, warmup_steps=0, t_total=20_000, schedule="poly", power=optimisation.power)
                for step in (0, 5000, 10_000, 19_999)
            ]
            assert rates == pytest.approx([1e-4, 7.719e-5, 5.359e-5, 1.346e-8], rel=1e-3)

    def test_compat_turns_every_switch(self) -> None:
        default, hints = Switches(), get_type_hints(Switches)
        assert OFFICIAL_SWITCHES.keys() == hints.keys()
        for name, value in OFFICIAL_SWITCHES.items():
            assert value != getattr(default, name) and {value, getattr(default, name)} == set(get_args(hints[name]))

    def test_the_learned_classes_get_better(self, clipseg: Path, tmp_path: Path) -> None:
        dataset = part_dataset(tmp_path / "images", 4)
        settings = tiny_settings(clipseg, flip=False)
        data = METHOD.prepare(settings, dataset, space(tmp_path))
        torch.manual_seed(0)
        learner = METHOD.learner(settings, VOCABULARY, Optimisation(lr=0.01, optimizer="adamw", warmup_steps=0), 40)
        batch = data.__getitems__([0, 1, 2, 3])
        before = learner.losses(batch)
        assert before.keys() == {"loss", "classes", "objects", "parts", "separation", "enhancement"}
        quiet_trainer(tmp_path, max_epochs=20).fit(learner, learner.loader(data, batch_size=4, shuffle=True, seed=0))
        after = learner.losses(batch)
        assert all(after[name] < 0.6 * before[name] for name in ("loss", "classes", "objects"))
        assert after["parts"] < before["parts"]

    def test_weights_of_zero_leave_their_terms_out(self, clipseg: Path, tmp_path: Path) -> None:
        none = LossWeights(objects=0, parts=0, separation=0, enhancement=0)
        settings = tiny_settings(clipseg, losses=none)
        data = METHOD.prepare(settings, part_dataset(tmp_path / "images", 2), space(tmp_path))
        losses = METHOD.learner(settings, VOCABULARY, Optimisation(), 1).losses(data[0])
        assert losses["loss"] == losses["classes"] and losses["objects"] > 0


@pytest.fixture
def predictor(clipseg: Path, tmp_path: Path, architecture: str) -> PartClipPredictor:
    torch.manual_seed(1)
    settings = tiny_settings(clipseg, architecture=architecture, class_chunk=2)
    encoder = frozen_encoder(settings.clipseg)
    return PartClipPredictor(build_student(settings, encoder.clipseg), encoder, VOCABULARY, settings)


@pytest.mark.parametrize("architecture", ["partclip", "clipseg"])
class TestPrediction:
    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Dataset:
        return part_dataset(tmp_path / "images", 4)

    def logits(self, predictor: PartClipPredictor, dataset: Dataset, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, H, W) logits of objects and background, and (C + 1, H, W) of classes, nothing left out or cut."""
        encoder, student = predictor.encoder, predictor.student
        taps = encoder.taps(encoder.encode(encoder.preprocess([dataset.image(index)])))
        names = student.encode_names(encoder.clipseg, part_names(predictor.vocabulary))
        with torch.no_grad():
            if predictor.settings.architecture == "clipseg":
                classes = student(taps, names)
                objects = classes[:, :0]
            else:
                trunk, classes, _ = student(taps, names)
                objects = trunk[:, names.parts :]
        size = dataset[index].size
        return tuple(  # type: ignore[return-value]
            functional.interpolate(x, size, mode="bilinear", align_corners=False)[0] if x.shape[1] else x[0]
            for x in (objects, classes)
        )

    def test_pred_all_is_the_published_rule(self, predictor: PartClipPredictor, dataset: Dataset) -> None:
        """Parity check 13: objects by argmax, then the parts of that object; the baseline's argmax is over all."""
        results = list(predictor.predict(sources_of(dataset), batch_size=3))
        assert any(len(result) for result in results)
        owners = torch.tensor(part_names(VOCABULARY).object_of)
        for index, result in enumerate(results):
            objects, classes = self.logits(predictor, dataset, index)
            if len(objects):
                chosen = objects.argmax(0)
                gated = classes[:-1].masked_fill(owners[:, None, None] != chosen, -torch.inf).argmax(0)
                wanted = torch.where(chosen == len(objects) - 1, C, gated)
            else:
                wanted = classes.argmax(0)
            assert np.mean(result.to_label_map(C) != wanted.numpy()) < 1e-3

    def test_all_at_once_is_what_the_baseline_does(self, predictor: PartClipPredictor, dataset: Dataset) -> None:
        """Both architectures, with the threshold that the background answers to."""
        changed = replace(predictor.settings, pred_all="all_at_once", background_above=0.5)
        asked = PartClipPredictor(predictor.student, predictor.encoder, VOCABULARY, changed)
        for index, result in enumerate(asked.predict(sources_of(dataset), batch_size=3)):
            _, classes = self.logits(predictor, dataset, index)
            wanted = torch.where(classes[-1] > 0, C, classes[:-1].argmax(0))
            assert np.mean(result.to_label_map(C) != wanted.numpy()) < 1e-3

    def test_oracle_obj_is_the_published_rule_object_by_object(
        self, predictor: PartClipPredictor, dataset: Dataset
    ) -> None:
        owners = np.array(part_names(VOCABULARY).object_of)
        for index, result in enumerate(oracle_results(predictor, dataset, batch_size=2)):
            classes = self.logits(predictor, dataset, index)[1][:-1].numpy()
            known = true_objects(dataset, index)
            found = result.to_label_map(C)
            assert (found[known == 3] == C).all() and (known < 3).any()
            for owner in np.unique(known[known < 3]):
                among = np.flatnonzero(owners == owner)
                wanted = among[classes[among].argmax(0)]
                assert np.mean((found != wanted)[known == owner]) < 1e-3

    def test_an_unreadable_image_is_an_empty_result_of_the_oracle(
        self, predictor: PartClipPredictor, dataset: Dataset
    ) -> None:
        dataset[1].path.write_bytes(b"no image")
        results = list(oracle_results(predictor, dataset))
        assert [len(result) > 0 for result in results] == [True, False, True, True]

    def test_other_names_need_no_training_and_leave_the_first_alone(
        self, predictor: PartClipPredictor, dataset: Dataset
    ) -> None:
        before = [result.to_label_map(C) for result in predictor.predict(sources_of(dataset))]
        other = predictor.with_names("box: body, head; lighthouse: Laterne")
        assert other.vocabulary.names == ("box's body", "box's head", "lighthouse's Laterne")
        assert [category.object for category in other.vocabulary.categories] == ["box", "box", "lighthouse"]
        assert all((result.to_label_map(3) <= 3).all() for result in other.predict(sources_of(dataset)))
        after = [result.to_label_map(C) for result in predictor.predict(sources_of(dataset))]
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))

    def test_the_order_of_names_only_renumbers(self, predictor: PartClipPredictor, dataset: Dataset) -> None:
        order = [3, 0, 4, 2, 1]
        turned = predictor.with_vocabulary(Vocabulary(tuple(VOCABULARY.categories[i] for i in order)))
        lookup = np.array([*order, C])
        for a, b in zip(predictor.predict(sources_of(dataset)), turned.predict(sources_of(dataset)), strict=True):
            different = a.to_label_map(C) != lookup[b.to_label_map(C)]
            assert different.mean() < 0.01, "where all units of a random head are dead, masks tie"

    def test_five_hundred_names_and_images_of_any_shape(self, predictor: PartClipPredictor, tmp_path: Path) -> None:
        parts = "; ".join(f"thing{i}: " + ", ".join(f"bit {j}" for j in range(10)) for i in range(50))
        many = predictor.with_names(parts)
        rng = np.random.default_rng(0)
        sizes = [(1, 1), (1, 40), (37, 2), (30, 200)]
        images = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]
        results = many.predict_images(images, batch_size=3)
        assert [result.size for result in results] == sizes
        for result in results:
            label_map = result.to_label_map(500)
            assert label_map.dtype == np.uint16 and label_map.max() <= 500
            assert sorted(result.labels) == [label for label in np.unique(label_map) if label < 500]

    def test_names_that_are_wrong_are_one_sentence(self, predictor: PartClipPredictor) -> None:
        for names, sentence in (
            ("", "names are empty"),
            ("dog", "0 colons"),
            ("dog: head,, leg", "empty part name"),
            ("dog: head; dog: Head", "2 times"),
            (f"dog: {'long ' * 90}leg", "tokens"),
        ):
            with pytest.raises(UserError, match=sentence):
                predictor.with_names(names)


def test_students_of_other_methods_have_fixed_names() -> None:
    class Fixed(Predictor):
        vocabulary = VOCABULARY

        def predict(self, sources: Any, *, batch_size: int) -> Any:
            return iter(())

    with pytest.raises(UserError, match="names it was trained on and no others"):
        Fixed().with_names("dog: head")


def test_a_segmentation_has_one_mask_per_category_with_the_mean_score() -> None:
    labels = torch.tensor([[0, 0, 2], [5, 2, 5]])
    scores = torch.tensor([[0.2, 0.4, 0.9], [0.1, 0.7, 0.1]])
    result = to_segmentation(LabelMap(labels, scores), 5)
    assert result.labels.tolist() == [0, 2]
    assert result.scores == pytest.approx([0.3, 0.8])
    assert np.array_equal(result.label_map, labels.numpy()) and result.label_map.dtype == np.uint8
    assert result.masks().sum((1, 2)).tolist() == [2, 2]


class TestFolders:
    def test_an_untrained_student_is_the_checkpoint_and_the_same_seed_the_same_bytes(
        self, clipseg: Path, tmp_path: Path
    ) -> None:
        settings = tiny_settings(clipseg)
        before = torch.random.get_rng_state()
        for name in ("a", "b"):
            untrained_student(tmp_path / name, "box: head, body", settings)
        assert torch.equal(before, torch.random.get_rng_state())
        first, second = ((tmp_path / name / "student.safetensors").read_bytes() for name in ("a", "b"))
        assert first == second
        predictor = METHOD.load(tmp_path / "a", space(tmp_path))
        decoder = frozen_encoder(settings.clipseg).clipseg.new_decoder().state_dict()
        assert all(torch.equal(decoder[k], v) for k, v in predictor.student.decoder.state_dict().items())
        assert predictor.vocabulary.names == ("box's head", "box's body")
        assert "behind the frozen towers of the CLIPSeg" in (tmp_path / "a" / "README.md").read_text()

    def test_a_student_of_another_clipseg_is_refused(self, clipseg: Path, tmp_path: Path) -> None:
        untrained_student(tmp_path / "student", "box: head", tiny_settings(clipseg))
        config = json.loads((tmp_path / "student" / "config.json").read_text())
        config["settings"]["clipseg"] = str(tiny_clipseg_folder(tmp_path / "other", seed=5))
        (tmp_path / "student" / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=r"was trained on CLIPSeg .* use the same weights and side"):
            METHOD.load(tmp_path / "student", space(tmp_path))

    def test_references_are_the_oracle_of_a_trained_run(self, clipseg: Path, tmp_path: Path) -> None:
        dataset, workspace = part_dataset(tmp_path / "images", 3), space(tmp_path)
        settings = tiny_settings(clipseg, architecture="clipseg", unseen=("disk",))
        assert METHOD.references(settings, dataset, workspace) == []
        untrained_student(workspace.run / "student", "box: head", settings)
        (score,) = METHOD.references(settings, dataset, workspace)
        assert score.method == METHOD.final_row(settings)["method"] == "clipseg"
        assert score.scoring is not None and score.scoring.name.startswith("oracle-obj")
        assert METHOD.scoring_of(settings).name.startswith("pred-all")
        assert [result.size for result in score.results()] == [sample.size for sample in dataset]
        identity = score.identity()
        untrained_student(workspace.run / "student", "box: head", settings, seed=1)
        assert score.identity() != identity


def test_settings_that_cannot_be_meant_are_refused() -> None:
    for values, sentence in (
        ({"side": 0}, r"settings\.side is 0"),
        ({"class_chunk": 0}, r"settings\.class_chunk is 0"),
        ({"background_above": 1.0}, r"settings\.background_above is 1\.0; give a number between 0 and 1, or null"),
        ({"unseen": ("fox", "fox")}, "names 'fox' twice"),
    ):
        with pytest.raises(UserError, match=sentence):
            PartClipSettings(**values)  # type: ignore[arg-type]
    for weights, sentence in (({"parts": -1}, r"losses\.parts"), ({"threshold": 1}, r"losses\.threshold")):
        with pytest.raises(UserError, match=sentence):
            LossWeights(**weights)
    with pytest.raises(UserError, match=r"losses\.temperature"):
        LossWeights(temperature=0)


RECIPES = Path(__file__).parents[2] / "recipes" / "partclip"


@pytest.mark.parametrize(
    ("recipe", "published"),
    [("pascal-part", "pascal_part_116"), ("ade-part", "ade20k_part_234"), ("partimagenet", "partimagenet_40")],
)
def test_recipes_leave_out_the_published_objects(recipe: str, published: Any) -> None:
    settings = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())["settings"]
    assert sorted(settings["unseen"]) == sorted(part_list(published).unseen)


def test_every_part_of_an_unseen_kind_of_the_menagerie_is_a_part_of_a_seen_one() -> None:
    unseen = yaml.safe_load((RECIPES / "menagerie.yaml").read_text())["settings"]["unseen"]
    parts = {kind: {part for part, owner in _kind_parts() if owner == kind} for kind in KINDS}
    seen = set().union(*(parts[kind] for kind in KINDS.keys() - set(unseen)))
    assert len(unseen) >= 8
    assert all(parts[kind] and parts[kind] <= seen for kind in unseen)


def _kind_parts() -> list[tuple[str, str]]:
    return [(name.split("'s ", 1)[1], kind) for name, kind in KIND_CLASSES]
