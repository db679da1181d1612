"""PartCLIPSeg: parts of objects never seen, by name, learned from part masks of other objects (NeurIPS 2024)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch

from weakly.data.dataset import Dataset
from weakly.errors import UserError
from weakly.evaluation.open_vocabulary import oracle_obj, pred_all
from weakly.evaluation.scoring import Scoring
from weakly.foundation.clipseg import ClipSeg
from weakly.foundation.promptable import PromptableSegmenter
from weakly.methods.base import Learner, Method, Panel, Score, Skipped, Workspace
from weakly.methods.embedding import find_store
from weakly.methods.optimisation import Optimisation
from weakly.methods.partclip.learner import PartClipLearner
from weakly.methods.partclip.model import ClipSegBaseline, PartClipSeg
from weakly.methods.partclip.names import parse_request
from weakly.methods.partclip.predictor import PartClipPredictor, Student, oracle_results
from weakly.methods.partclip.presets import PRESETS
from weakly.methods.partclip.settings import PartClipSettings
from weakly.methods.partclip.stages import stage_panels
from weakly.methods.partclip.tables import paper_tables
from weakly.methods.partclip.taps import TapEncoder, View, frozen_encoder
from weakly.methods.partclip.targets import PartData, drawn_rows, read_targets, seen_classes
from weakly.methods.stored_views import store_views
from weakly.methods.student_folder import ModelCard, StudentKind, load_student, save_student
from weakly.methods.tables import Tables
from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary

log = logging.getLogger(__name__)

KIND = StudentKind(
    "partclip",
    "PartCLIPSeg",
    "Understanding Multi-Granularity for Open-Vocabulary Part Segmentation, NeurIPS 2024",
    PartClipSettings,
)


class PartClipMethod(Method):
    """The verbs of PartCLIPSeg and of its baseline, a CLIPSeg fine-tuned on phrases."""

    name: ClassVar[str] = "partclip"
    Settings: ClassVar[type[Any]] = PartClipSettings
    supervisions: ClassVar[tuple[str, ...]] = ("masks",)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    predicts_with: ClassVar[tuple[str, ...]] = ("pred_all", "background_above", "class_chunk")
    scoring: ClassVar[Scoring] = pred_all()

    def prepare(self, settings: PartClipSettings, dataset: Dataset, workspace: Workspace) -> PartData:
        """Label maps of the images that show a seen part, and their taps in the feature store.

        Images without a seen part are left out, or replaced, and counted; those that cannot be read are named.

        Raises:
            UserError: no image shows a part of a seen object or can be read, or ``unseen`` does not fit the vocabulary.
        """
        switches = settings.switches
        seen = seen_classes(dataset.vocabulary, settings.unseen)
        encoder = frozen_encoder(settings.clipseg, settings.side, workspace.device)
        targets = read_targets(
            dataset,
            seen,
            encoder.side,
            path=switches.label_path,
            ignore=switches.unseen_pixels == "ignore",
            progress=partial(workspace.progress, f"label maps {dataset.split}"),
        )
        _tell_left_out(dataset, targets.empty, targets.skipped, workspace, replaced=switches.none_entries == "resample")
        if not targets.images:
            raise UserError(
                f"No image of {dataset.name} ({dataset.split}) has a mask of a part of a seen object; give part masks, "
                "or leave fewer objects unseen."
            )
        plain = View(bgr=switches.train_channel_order == "bgr", enlarged=switches.label_path == "resize800")
        views = [plain, plain.flipped()] if settings.flip else [plain]
        stored = store_views(
            cast("PromptableSegmenter", encoder),
            dataset.select(targets.images),
            {view.variant: view.reader() for view in views},
            workspace,
        )
        replaced = len(targets.empty) if switches.none_entries == "resample" else 0
        return PartData(
            features=stored.features,
            codes=targets.codes[list(stored.kept)],
            seen=seen,
            layers=len(encoder.clipseg.layers_tapped),
            grid=encoder.clipseg.grid,
            pooling=switches.pooling,
            scope=switches.part_scope,
            rows=drawn_rows(len(stored.kept), replaced),
            skipped=(*targets.skipped, *stored.skipped),
        )

    def unaugmented(self, settings: PartClipSettings) -> PartClipSettings:
        """Without mirrored images."""
        return replace(settings, flip=False)

    def learner(
        self, settings: PartClipSettings, vocabulary: Vocabulary, optimisation: Optimisation, total_steps: int
    ) -> PartClipLearner:
        """A fresh student that starts from the checkpoint's decoder."""
        encoder = frozen_encoder(settings.clipseg, settings.side)
        student = build_student(settings, encoder.clipseg)
        return PartClipLearner(student, settings, vocabulary, optimisation, total_steps, encoder.fingerprint)

    def save(self, learner: Learner, folder: Path, card: dict[str, Any]) -> None:
        """Write the student folder."""
        if not isinstance(learner, PartClipLearner):
            raise TypeError(f"{type(learner).__name__} is no PartClipLearner")
        write_student(folder, learner.student, learner.settings, learner.vocabulary, learner.fingerprint, card)

    def load(self, folder: Path, workspace: Workspace, settings: PartClipSettings | None = None) -> PartClipPredictor:
        """The predictor of a student folder; it uses stored taps where there are any.

        Raises:
            UserError: the folder is damaged, or the CLIPSeg is missing or not the one the student was trained on.
        """
        saved = load_student(folder, KIND, settings)
        settings = saved.settings
        name, fingerprint = saved.read(lambda config: (config["clipseg"]["name"], config["clipseg"]["fingerprint"]))
        encoder = frozen_encoder(settings.clipseg, settings.side, workspace.device)
        if encoder.fingerprint != fingerprint:
            raise UserError(
                f"This student was trained on CLIPSeg {name!r} (fingerprint {fingerprint[:12]}), but {encoder.name!r} "
                f"here has fingerprint {encoder.fingerprint[:12]}; use the same weights and side, or train again."
            )
        student = saved.build(lambda _: build_student(settings, encoder.clipseg))
        store = find_store(workspace.features, cast("PromptableSegmenter", encoder), workspace.feature_dtype)
        return PartClipPredictor(student, encoder, saved.vocabulary, settings, store)

    def scoring_of(self, settings: PartClipSettings) -> Scoring:
        """Pred-All, apart for seen and unseen objects."""
        return pred_all(settings.unseen)

    def final_row(self, settings: PartClipSettings) -> dict[str, str]:
        """The baseline is a method of its own in records: ``clipseg``."""
        return {"method": record_name(settings)}

    def references(self, settings: PartClipSettings, dataset: Dataset, workspace: Workspace) -> list[Score]:
        """Oracle-Obj: the run's student, once it is trained, told the true object of every pixel."""
        folder = workspace.run / "student"
        if not (folder / "config.json").is_file():
            return []

        def results() -> Iterator[Segmentation]:
            return oracle_results(self.load(folder, workspace).with_vocabulary(dataset.vocabulary), dataset)

        def identity() -> str:
            return str(load_student(folder, KIND).config["weights_sha256"])

        return [
            Score(
                record_name(settings), "masks", results, identity, scoring=oracle_obj(settings.unseen), of_student=True
            ),
        ]

    def panels(
        self, settings: PartClipSettings, dataset: Dataset, workspace: Workspace, indices: Sequence[int]
    ) -> list[list[Panel]]:
        """Parts and objects found, and single parts as heat; see :mod:`weakly.methods.partclip.stages`.

        None before the run's student is trained.
        """
        folder = workspace.run / "student"
        if not (folder / "config.json").is_file():
            return [[] for _ in indices]
        predictor = self.load(folder, workspace).with_vocabulary(dataset.vocabulary)
        return stage_panels(predictor, dataset.select(indices), settings.unseen)

    def tables(self, settings: PartClipSettings) -> Tables:
        """The paper's tables, and one row per switch; see :mod:`weakly.methods.partclip.tables`."""
        return paper_tables(settings)


def build_student(settings: PartClipSettings, clipseg: ClipSeg) -> Student:
    """A student as it starts: the checkpoint's decoder and text tables, the rest drawn from torch's random state."""
    switches = settings.switches
    if settings.architecture == "clipseg":
        return ClipSegBaseline(clipseg, background_vector=switches.background_vector)
    return PartClipSeg(
        clipseg,
        obj_text_index=switches.obj_text_index,
        background_vector=switches.background_vector,
        composition=switches.composition,
    )


def write_student(
    folder: Path,
    student: Student,
    settings: PartClipSettings,
    vocabulary: Vocabulary,
    fingerprint: str,
    figures: Mapping[str, Any],
) -> None:
    """Write a student folder; ``figures`` are what its card states beyond names and settings."""
    kind = "PartCLIPSeg" if settings.architecture == "partclip" else "CLIPSeg, fine-tuned on phrases,"
    unseen = f" It was trained without any mask of {', '.join(settings.unseen)}." if settings.unseen else ""
    card = ModelCard(
        "part-segmentation",
        (
            f"{kind} behind the frozen towers of the CLIPSeg `{settings.clipseg}` (fingerprint `{fingerprint[:12]}`).",
            f"It segments parts by their names, those of objects it never saw too.{unseen}",
        ),
        figures,
    )
    described = {"clipseg": {"name": settings.clipseg, "fingerprint": fingerprint}}
    save_student(folder, KIND, student, settings, vocabulary, card, described)


def untrained_student(folder: Path, names: str, settings: PartClipSettings | None = None, *, seed: int = 0) -> None:
    """Write the student folder of a CLIPSeg checkpoint as it is, for ``weakly predict`` without a run.

    What the checkpoint does not have (the adapter and the background) is drawn at random and has learned nothing.

    Args:
        folder: made if it is not there.
        names: what the student is asked for unless told otherwise, e.g. ``"dog: head, torso"``.
        settings: ``clipseg`` says which checkpoint, ``architecture`` how its decoder is used.
        seed: of what is drawn.

    Raises:
        UserError: the names are malformed, or there is no such checkpoint.
    """
    settings = settings or PartClipSettings()
    vocabulary = parse_request(names)
    encoder = frozen_encoder(settings.clipseg, settings.side)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = build_student(settings, encoder.clipseg)
    write_student(folder, student, settings, vocabulary, encoder.fingerprint, {"trained": "not at all"})


def record_name(settings: PartClipSettings) -> str:
    """What records call the method of these settings."""
    return "clipseg" if settings.architecture == "clipseg" else "partclip"


def _tell_left_out(
    dataset: Dataset, empty: Sequence[int], skipped: Sequence[Skipped], workspace: Workspace, *, replaced: bool
) -> None:
    for one in skipped:
        log.warning("Left out of training: %s", one.reason)
    if empty:
        named = ", ".join(dataset[index].path.name for index in empty[:3]) + (", ..." if len(empty) > 3 else "")
        fate = "replaced by others" if replaced else "left out"
        workspace.note(f"{len(empty)} of {len(dataset)} images of {dataset.split} show no seen part: {fate} ({named})")


__all__ = ["KIND", "METHOD", "PartClipMethod", "PartClipSettings", "TapEncoder", "build_student", "untrained_student"]

METHOD = PartClipMethod()
