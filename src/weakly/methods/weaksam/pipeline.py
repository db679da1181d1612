"""The stages before the student, in order, over the images of one dataset (spec weaksam, section 0).

Frozen work lies in the shared features folder (embeddings, proposals), what is learned or decided in the run's own:
``clues/``, ``points/``, ``wsod/``, ``pseudo_truth/``, ``pseudo_masks/``. Every stage finds what earlier calls have
left. An image is encoded by the promptable segmenter once: proposals and masks are decoded from stored embeddings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from weakly.data.class_names import background_words, clip_names
from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.foundation.features import FeatureStore
from weakly.foundation.image_keys import image_keys
from weakly.foundation.promptable import PromptableSegmenter
from weakly.labels import Sample
from weakly.methods.base import Skipped, Workspace
from weakly.methods.fma.prompts import data_digest
from weakly.methods.fma.seeds import tag_matrix, tags_of
from weakly.methods.frozen import frozen_clip, frozen_segmenter
from weakly.methods.weaksam.clue_data import TaggedImages
from weakly.methods.weaksam.clue_training import ClueFiles, load_weights, train_network, training_identity
from weakly.methods.weaksam.clues import ClipEsExtractor, ClueExtractor, NetworkExtractor, build_network
from weakly.methods.weaksam.crop_store import CropStore
from weakly.methods.weaksam.detectors import Detections
from weakly.methods.weaksam.point_store import PointStore
from weakly.methods.weaksam.proposal_store import ProposalStore, SearchStore
from weakly.methods.weaksam.proposals import Proposals, load_proposals
from weakly.methods.weaksam.pseudo_mask_store import PseudoMaskStore
from weakly.methods.weaksam.pseudo_truth import PseudoTruth, pseudo_truth, write_pseudo_truth
from weakly.methods.weaksam.selective_search import selective_search
from weakly.methods.weaksam.settings import WeakSamSettings
from weakly.methods.weaksam.targets import PseudoInstances
from weakly.methods.weaksam.wsod import WsodDetector, build_detector
from weakly.methods.weaksam.wsod_data import RoiViews, WsodData, open_pixels
from weakly.methods.weaksam.wsod_inference import DetectionFiles, detect_images, detection_identity
from weakly.methods.weaksam.wsod_training import WsodFiles, load_detector, train_detector
from weakly.methods.weaksam.wsod_training import training_identity as wsod_identity
from weakly.vocabulary import Vocabulary

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Usable:
    """Images that can be read and have tags.

    Attributes:
        split: they belong to.
        samples: n of them.
        tags: (P,) category indices of every image.
        keys: of the files' bytes.
        skipped: the others, and why.
    """

    split: str
    samples: tuple[Sample, ...]
    tags: tuple[NDArray[np.int64], ...]
    keys: tuple[str, ...]
    skipped: tuple[Skipped, ...]

    def matrix(self, classes: int) -> NDArray[np.bool_]:
        """(n, C) bool."""
        return tag_matrix(self.tags, classes).numpy()

    def digest(self, classes: int) -> str:
        """Hex digest of images and tags."""
        return data_digest(list(self.keys), tag_matrix(self.tags, classes))


STAGES = ("clues", "proposals", "wsod", "pseudo-truth", "targets")
"""Names of what :meth:`Pipeline.instances` does, in order."""


class Pipeline:
    """The stages of one run.

    Models are loaded when a stage needs them.

    Args:
        settings: of the run.
        vocabulary: C categories.
        workspace: folders and device.
    """

    def __init__(self, settings: WeakSamSettings, vocabulary: Vocabulary, workspace: Workspace) -> None:
        self.settings, self.vocabulary, self.workspace = settings, vocabulary, workspace

    @cached_property
    def segmenter(self) -> PromptableSegmenter:
        """The frozen promptable segmenter."""
        return frozen_segmenter(self.settings.segmenter, self.workspace.device)

    @cached_property
    def features(self) -> FeatureStore:
        """Its embeddings."""
        dtype = self.workspace.feature_dtype
        return FeatureStore.open(self.workspace.features, self.segmenter, dtype)  # type: ignore[arg-type]

    @cached_property
    def crops(self) -> CropStore:
        """Embeddings of crops, for a detector that is shown them."""
        setting = self.settings.wsod
        clip = frozen_clip(setting.weights or "bundled", self.workspace.device)
        return CropStore(self.workspace.features, clip, setting.crops)

    def usable(self, dataset: Dataset) -> Usable:
        """The images to work on; where the segmenter is asked, they are encoded here, once.

        Raises:
            UserError: no image has tags, or none that has can be read.
        """
        found = [tags_of(sample) for sample in dataset]
        if all(tags is None for tags in found):
            raise UserError(
                f"The split {dataset.split!r} of {dataset.name} has no image tags, which WeakSAM learns from; choose "
                "another split, or, if it is the validation split, set data.val to null."
            )
        reasons = {
            sample.path: f"{sample.path} has no tags; add them or drop its record."
            for sample, tags in zip(dataset, found, strict=True)
            if tags is None
        }
        tagged = [(sample, tags) for sample, tags in zip(dataset, found, strict=True) if tags is not None]
        keys, unreadable = self._keys([sample.path for sample, _ in tagged], dataset.split)
        reasons |= unreadable
        kept = [(*pair, key) for pair, key in zip(tagged, keys, strict=True) if key is not None]
        if not kept:
            raise UserError(f"No image of {dataset.name} ({dataset.split}) can be read; run `weakly data check` on it.")
        samples, tags, keys = zip(*kept, strict=True)
        skipped = (Skipped(s.image_id, s.path, reasons[s.path]) for s in dataset if s.path in reasons)
        return Usable(dataset.split, samples, tags, keys, tuple(skipped))

    def embedding(self, key: str) -> Tensor:
        """(1, C, h, w) float32 of an encoded image, on the segmenter's device."""
        return self.features.get([key]).float().to(self.segmenter.device)

    def extractor(self, images: Usable | None = None) -> ClueExtractor | None:
        """Stage A: where clues come from; a network that is not trained yet is trained on these images first.

        None where selective search makes the proposals.

        Raises:
            UserError: the network is not trained and no images are given.
        """
        if self.settings.proposals_by == "selective-search":
            return None
        setting, classes = self.settings.clues, len(self.vocabulary)
        if setting.model == "clip-es":
            names = clip_names(self.vocabulary.names, self.settings.names)
            words = background_words(self.vocabulary.names, self.settings.backgrounds)
            return ClipEsExtractor(frozen_clip(setting.clip, self.workspace.device), names, words, setting.clip_es)
        network = build_network(setting, classes)
        identity = training_identity(network, setting.train)
        files = ClueFiles(self.workspace.run / "clues", setting.model, identity)
        if load_weights(network, files.weights):
            return NetworkExtractor(network.to(self.workspace.device), setting)
        if images is None:
            raise UserError(f"{files.folder} holds no trained clue network of this recipe; run `weakly fit` first.")
        bank = setting.train.bank([sample.path for sample in images.samples], self._progress("reading images"))
        data = TaggedImages(bank, tag_matrix(images.tags, classes))
        train_network(
            network,
            data,
            setting.train,
            files,
            images.digest(classes),
            device=self.workspace.device,
            progress=self._progress("clue network"),
        )
        self.workspace.note(f"Clue network: losses in {files.log}")
        return NetworkExtractor(network, setting)

    def proposals(self, images: Usable, extractor: ClueExtractor | None) -> list[Proposals]:
        """Stages B and C: all proposals of every image, by points from clues, or by selective search.

        Args:
            images: encoded.
            extractor: of clues; None: selective search.
        """
        if extractor is None:
            return self._searched(images)
        points = self.points(extractor)
        store = ProposalStore(self.workspace.features, self.segmenter, self.settings.proposals, self.embedding)
        tell = self._progress(f"proposals {images.split}")
        found: list[Proposals] = []
        tell(0, len(images.samples))
        for sample, tags, key in zip(images.samples, images.tags, images.keys, strict=True):
            found.append(store.of_image(key, sample.size, points.of_image(sample.path, key, tags)))
            tell(len(found), len(images.samples))
        counts = [len(each) for each in found]
        self.workspace.note(
            f"Proposals of {images.split}: {np.mean(counts):.1f} per image, {counts.count(0)} images without any"
        )
        return found

    def points(self, extractor: ClueExtractor) -> PointStore:
        """Stage B: the peaks of these clues."""
        return PointStore(self.workspace.run / "points", extractor, self.settings.peaks)

    def loaded(self, images: Usable, proposals: Sequence[Proposals]) -> list[NDArray[np.float32]]:
        """(n, 4) boxes of every image as the detector sees them."""
        return [
            load_proposals(each, sample.size, self.settings.load).boxes
            for sample, each in zip(images.samples, proposals, strict=True)
        ]

    def detector(self, images: Usable | None = None, boxes: Sequence[NDArray[np.float32]] = ()) -> WsodDetector:
        """Stage D: the weakly supervised detector; one that is not trained yet is trained on these images first.

        Raises:
            UserError: it is not trained and no images are given, or none has both tags and proposals.
        """
        setting, training, classes = self.settings.wsod, self.settings.wsod_training, len(self.vocabulary)
        fresh = build_detector(setting, classes, training.seed)
        about = [wsod_identity(fresh, training), self._proposed_by()]
        identity = hashlib.sha256(json.dumps(about).encode()).hexdigest()
        files = WsodFiles(self.workspace.run / "wsod", identity)
        if files.detector.is_file():
            return load_detector(files.detector).to(self.workspace.device)
        if images is None:
            raise UserError(f"{files.folder} holds no trained detector of this recipe; run `weakly fit` first.")
        if setting.sees_crops:
            tell = self._progress(f"crops {images.split}")
            self.crops.build(images.keys, self._readers(images), boxes, mirrored=training.flip > 0, progress=tell)
        data = WsodData(list(images.keys), self.views(images, boxes), images.matrix(classes), boxes)
        for reason, rows in data.skipped.items():
            if rows:
                self.workspace.note(f"Detector: {len(rows)} of {len(images.samples)} images left out, {reason}")
        detector = fresh.to(self.workspace.device)
        train_detector(detector, data, training, files, self._progress("weakly supervised detector"))
        self.workspace.note(f"Weakly supervised detector: losses in {files.log}")
        return detector

    def views(self, images: Usable, boxes: Sequence[NDArray[np.float32]]) -> Sequence[Callable[[], RoiViews]]:
        """What opens every image for the detector, with its boxes: as pixels, or as crops."""
        readers = self._readers(images)
        if not self.settings.wsod.sees_crops:
            return [partial(open_pixels, read, own) for read, own in zip(readers, boxes, strict=True)]
        return self.crops.views(images.keys, readers, boxes, [sample.size for sample in images.samples])

    def detections(
        self, images: Usable, detector: WsodDetector, boxes: Sequence[NDArray[np.float32]]
    ) -> list[Detections]:
        """What the detector finds in every image, of every category, tagged or not."""
        digest = hashlib.sha256(images.digest(len(self.vocabulary)).encode())
        for each in boxes:
            digest.update(np.ascontiguousarray(each, np.float32).tobytes())
        identity = detection_identity(detector, self.settings.wsod_inference, digest.hexdigest())
        return detect_images(
            detector,
            self.views(images, boxes),
            boxes,
            self.settings.wsod_inference,
            DetectionFiles(self.workspace.run / "wsod", images.split, identity),
            [sample.image_id for sample in images.samples],
            self.vocabulary,
            self._progress(f"detections {images.split}"),
        )

    def pseudo_truth(self, images: Usable, found: Sequence[Detections]) -> list[PseudoTruth]:
        """Stage E: the detections that count as truth; also written, to be looked at."""
        setting, tags = self.settings.pseudo_truth, images.matrix(len(self.vocabulary))
        truths = [pseudo_truth(each, row, setting) for each, row in zip(found, tags, strict=True)]
        digest = hashlib.sha256(json.dumps([asdict(setting), images.digest(len(self.vocabulary))]).encode())
        for truth in truths:
            digest.update(truth.boxes.tobytes() + truth.labels.tobytes())
        path = self.workspace.run / "pseudo_truth" / f"{images.split}-{digest.hexdigest()[:12]}.json"
        if not path.is_file():
            write_pseudo_truth(path, truths, images.samples, self.vocabulary)
        counts = [len(truth.boxes) for truth in truths]
        missing = sum(len(truth.missing) for truth in truths)
        self.workspace.note(
            f"Pseudo truth of {images.split}: {np.mean(counts):.2f} boxes per image, {counts.count(0)} images without "
            f"any, {missing} tags without a box; {path}"
        )
        return truths

    def pseudo_instances(self, images: Usable, truths: Sequence[PseudoTruth]) -> list[PseudoInstances]:
        """Stage G's input where the student wants masks: the segmenter's mask of every box; else the boxes."""
        if not self.settings.wants_masks:
            return [PseudoInstances(truth.boxes, truth.labels) for truth in truths]
        store = PseudoMaskStore(self.workspace.run / "pseudo_masks", self.segmenter, self.embedding)
        tell = self._progress(f"pseudo masks {images.split}")
        instances: list[PseudoInstances] = []
        tell(0, len(truths))
        for sample, key, truth in zip(images.samples, images.keys, truths, strict=True):
            instances.append(store.of_image(key, sample.size, truth.boxes, truth.labels))
            tell(len(instances), len(truths))
        return instances

    def trained(self) -> bool:
        """Whether the run holds a weakly supervised detector."""
        return any(
            not path.name.endswith(".checkpoint.safetensors")
            for path in (self.workspace.run / "wsod").glob("detector-*.safetensors")
        )

    def instances(self, images: Usable) -> list[PseudoInstances]:
        """All stages up to the targets of these images; what is not trained yet is trained on them."""
        done, extractor = self.workspace.done, self.extractor(images)
        done("clues")
        boxes = self.loaded(images, self.proposals(images, extractor))
        done("proposals")
        found = self.detections(images, self.detector(images, boxes), boxes)
        done("wsod")
        truths = self.pseudo_truth(images, found)
        done("pseudo-truth")
        instances = self.pseudo_instances(images, truths)
        done("targets")
        return instances

    def _proposed_by(self) -> list[Any]:
        """All that decides the proposals of an image, so that runs with others may keep their detectors together."""
        setting = self.settings
        if setting.proposals_by == "selective-search":
            return [setting.proposals_by, asdict(setting.selective_search), asdict(setting.load)]
        train = replace(setting.clues.train, memory=0, workers=0)
        parts = [
            asdict(replace(setting.clues, train=train)),
            asdict(setting.peaks),
            asdict(replace(setting.proposals, prompts_per_batch=1)),
            asdict(setting.load),
        ]
        return [setting.proposals_by, self.segmenter.fingerprint, parts, dict(setting.names), setting.backgrounds]

    def _searched(self, images: Usable) -> list[Proposals]:
        """Selective search, stored like other proposals."""
        store = SearchStore(self.workspace.features, self.settings.selective_search, selective_search)
        tell = self._progress(f"selective search {images.split}")
        found: list[Proposals] = []
        tell(0, len(images.samples))
        for key, read in zip(images.keys, self._readers(images), strict=True):
            found.append(store.of_image(key, read))
            tell(len(found), len(images.samples))
        return found

    def _keys(self, paths: Sequence[Path], split: str) -> tuple[Sequence[str | None], dict[Path, str]]:
        """Keys of the files, None where one cannot be read, and {such a file: why}."""
        if self.settings.asks_segmenter:
            report = self.features.build(paths, progress=self._progress(f"features {split}"))
            return report.keys, dict(report.skipped)
        reasons: dict[Path, str] = {}
        for path in paths:
            try:
                read_image(path)
            except UserError as error:
                reasons[path] = str(error)
        keys = image_keys(self.workspace.features, paths)
        return [None if path in reasons else key for path, key in zip(paths, keys, strict=True)], reasons

    def _readers(self, images: Usable) -> list[Callable[[], NDArray[np.uint8]]]:
        return [partial(read_image, sample.path) for sample in images.samples]

    def _progress(self, title: str) -> Progress:
        return partial(self.workspace.progress, title)
