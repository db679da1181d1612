"""What every method promises, so that `fit`, `evaluate`, `predict` and `report` can serve it without knowing it.

A method is a folder ``weakly/methods/<name>/``, or ``weakly/methods/baselines/<name>/``, whose package exposes
``METHOD``: a :class:`Method`. Nothing else registers it. The engine finds it by name (:func:`find_method`).
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from weakly.data.dataset import Dataset
from weakly.errors import UserError
from weakly.evaluation.scoring import PARTS, Scoring
from weakly.methods.tables import Tables
from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False, slots=True)
class ImageSource:
    """One image to predict on, read when its turn comes.

    Attributes:
        image_id: what COCO results call it.
        path: the file.
        read: returns (H, W, 3) uint8 RGB; raises UserError where the file cannot be read.
    """

    image_id: int | str
    path: Path
    read: Callable[[], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that could not be used: one line in the report, never the run."""

    image_id: int | str
    path: Path
    reason: str


def quiet(title: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""


def unsaid(sentence: str) -> None:
    """A remark that nobody wants to read."""


@dataclass(frozen=True)
class Workspace:
    """Where a run keeps what it computes.

    Attributes:
        run: the run's own folder.
        features: root of the feature stores, shared between runs.
        device: torch device for frozen models and prediction.
        feature_dtype: ``"float32" | "float16" | "int8"`` of stored features.
        feature_budget: bytes of features that may be held in memory.
        progress: told ``(title, done, total)`` by long computations; the last call has done = total.
        note: told measured facts worth a line, e.g. what storing features in fewer bits changed.
        until: name of the stage after which :meth:`Method.prepare` stops; None: it does all of them.
    """

    run: Path
    features: Path
    device: str = "cpu"
    feature_dtype: str = "float16"
    feature_budget: int = 4 << 30
    progress: Callable[[str, int, int], None] = quiet
    note: Callable[[str], None] = unsaid
    until: str | None = None

    def done(self, stage: str) -> None:
        """What a method calls when everything of a stage is on disk.

        Raises:
            StageDone: the method was asked to go no further.
        """
        if stage == self.until:
            raise StageDone(stage)


class StageDone(Exception):  # noqa: N818 - no error: what was asked for is done
    """The stage after which a method was asked to stop is on disk."""


class Learner(lightning.LightningModule, ABC):
    """The training side of a method: what Lightning drives.

    Parameters that train are exactly those of ``self.student``; frozen models are not sub-modules, so checkpoints
    hold the student alone.
    """

    @abstractmethod
    def loader(self, data: Any, *, batch_size: int, shuffle: bool, seed: int) -> DataLoader[Any]:
        """Batches over what :meth:`Method.prepare` returned. Shuffling depends on ``seed`` and the epoch alone."""


class Predictor(ABC):
    """The inference side of a method: images in, segmentations at original size out. No labels."""

    vocabulary: Vocabulary

    @abstractmethod
    def predict(self, sources: Sequence[ImageSource], *, batch_size: int) -> Iterator[Segmentation | Skipped]:
        """One result per source, in order. A source that cannot be read yields :class:`Skipped`."""

    def predict_images(self, images: Sequence[NDArray[np.uint8]], *, batch_size: int = 8) -> list[Segmentation]:
        """Segmentations of (H, W, 3) uint8 RGB images in memory, in order."""
        sources = [ImageSource(i, Path(f"image {i}"), partial(_as_is, image)) for i, image in enumerate(images)]
        results = self.predict(sources, batch_size=batch_size)
        return [result for result in results if isinstance(result, Segmentation)]

    def with_names(self, names: str) -> Predictor:  # noqa: ARG002
        """The same student, asked for other parts of other objects, e.g. ``"dog: head, torso; cat: tail"``.

        Raises:
            UserError: this student knows the names it was trained on and no others, or the names are malformed.
        """
        raise UserError("This student segments the names it was trained on and no others; leave the names out.")

    def with_vocabulary(self, vocabulary: Vocabulary) -> Predictor:
        """The same student, asked for other categories, those of another dataset.

        Raises:
            UserError: this student knows the categories it was trained on and no others.
        """
        raise UserError(
            f"This student was trained on other categories than these, {len(self.vocabulary)} and {len(vocabulary)} of "
            "them; use it on data with the same names."
        )


def _as_is(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image


@dataclass(frozen=True)
class Score:
    """An upper bound or a baseline that comes with every evaluation, e.g. true boxes as prompts.

    Attributes:
        method: ``"oracle"``, ...
        supervision: ``"box"``, ``"point"``, ...
        results: one segmentation per image of the dataset.
        identity: all that the results depend on besides the dataset, e.g. the fingerprint of the frozen model; runs
            with the same identity share them.
        extra: fields of its record: ``row``, ``setting``, ``segmenter``, ``published``.
        scoring: how it is compared with the truth; None: as the method's own results.
        of_student: the run's own student made them, under other conditions; the record states the run's preset.
    """

    method: str
    supervision: str
    results: Callable[[], Iterator[Segmentation]]
    identity: Callable[[], str]
    extra: dict[str, Any] = field(default_factory=dict)
    scoring: Scoring | None = None
    of_student: bool = False


NO_CATEGORY = 65535
"""Category of a box or a point of a panel that has none."""


@dataclass(frozen=True, eq=False, slots=True)
class Panel:
    """One stage of a method on one image, to be looked at; the report draws it over the image.

    Attributes:
        title: what is seen, e.g. ``"CAM of dog"``.
        kind: ``"heat"``: (h, w) uint8 strengths, 255 the strongest. ``"labels"``: (h, w) uint8 or uint16 categories,
            background = C, 255 void. ``"regions"``: (h, w) uint8 or uint16 numbers of regions, 0 where none is.
            ``"boxes"``: (n, 5) uint16 rows x0, y0, x1, y1, category; ``"points"``: (n, 3) uint16 rows x, y, category,
            both in image pixels and with :data:`NO_CATEGORY` for what has none; at least one row.
        values: the stage, covering the whole image, maps at any resolution.
    """

    title: str
    kind: Literal["heat", "labels", "regions", "boxes", "points"]
    values: NDArray[np.uint8] | NDArray[np.uint16]


class Method(ABC):
    """A method as the engine sees it: six verbs around a typed ``Settings`` dataclass, and optional ones with defaults.

    A sub-folder ``demo/`` of the method's folder holds the recipes of its ``weakly demo``, one run each.

    Attributes:
        name: folder name and value of ``method`` in recipes and records.
        Settings: frozen dataclass; its fields are the keys of a recipe's ``settings:`` section.
        supervisions: the weak labels it can learn from.
        presets: named sections of a recipe (``settings``, ``optimisation`` ...) that depart from the defaults.
        scoring: how its results are compared with the truth.
        predicts_with: dotted names of the settings, and of whole sections, that prediction alone reads: a trained
            student takes other values of them.
        shared: folders of a run whose files :meth:`prepare` names for all that they depend on, given the data: runs on
            the same data may have them in common.
        stages: names of the steps of :meth:`prepare`, in order, each of which may be the last of a call; see
            :meth:`Workspace.done`.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[Any]]
    supervisions: ClassVar[tuple[str, ...]]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    scoring: ClassVar[Scoring] = PARTS
    predicts_with: ClassVar[tuple[str, ...]] = ()
    shared: ClassVar[tuple[str, ...]] = ()
    stages: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def prepare(self, settings: Any, dataset: Dataset, workspace: Workspace) -> Any:
        """Everything frozen, once: features and targets of one dataset. Resumable; returns training data."""

    def unaugmented(self, settings: Any) -> Any:
        """The settings of images that are never trained on, so that nothing is made of views that only training shows.

        The stages of :meth:`prepare` are the same under both.
        """
        return settings

    @abstractmethod
    def learner(self, settings: Any, vocabulary: Vocabulary, optimisation: Any, total_steps: int) -> Learner:
        """A fresh learner. Deterministic under ``torch.manual_seed``."""

    @abstractmethod
    def save(self, learner: Learner, folder: Path, card: dict[str, Any]) -> None:
        """Write the student, its settings and vocabulary and a model card to ``folder`` (atomically)."""

    @abstractmethod
    def load(self, folder: Path, workspace: Workspace, settings: Any = None) -> Predictor:
        """The predictor of a folder that :meth:`save` wrote.

        Args:
            folder: of the student.
            workspace: of a run, or made for the student.
            settings: in place of the student's own; they differ from those in :attr:`predicts_with` alone.
        """

    def scoring_of(self, settings: Any) -> Scoring:  # noqa: ARG002
        """How the results of a run are compared with the truth, where that depends on its settings."""
        return self.scoring

    def final_row(self, settings: Any) -> dict[str, str]:  # noqa: ARG002
        """Fields of the record of a run's student (``row``, ``method`` ...) that depart from the usual."""
        return {}

    def references(self, settings: Any, dataset: Dataset, workspace: Workspace) -> list[Score]:  # noqa: ARG002
        """Upper bounds and baselines that come with every evaluation; none by default."""
        return []

    def panels(
        self,
        settings: Any,  # noqa: ARG002
        dataset: Dataset,  # noqa: ARG002
        workspace: Workspace,  # noqa: ARG002
        indices: Sequence[int],
    ) -> list[list[Panel]]:
        """The stages of a trained run on the images at ``indices`` of a dataset, in order; none by default."""
        return [[] for _ in indices]

    def tables(self, settings: Any) -> Tables:  # noqa: ARG002
        """The paper's tables as changes of ``settings``, for ``weakly reproduce``; none by default."""
        return Tables()


def method_names() -> list[str]:
    """Names of the installed methods and baselines."""
    return sorted(_method_modules())


def find_method(name: str) -> Method:
    """The method of a name.

    Raises:
        UserError: there is no such folder, or it exposes no ``METHOD``.
    """
    modules = _method_modules()
    if name not in modules:
        raise UserError(f"There is no method {name!r}; this installation has {', '.join(sorted(modules))}.")
    method = getattr(importlib.import_module(modules[name]), "METHOD", None)
    if not isinstance(method, Method):
        file = f"{modules[name].replace('.', '/')}/__init__.py"
        raise UserError(f"{file} exposes no METHOD; set METHOD = YourMethod() there.")
    return method


def _method_modules() -> dict[str, str]:
    """{name: package} of the folders of ``methods`` and its ``baselines``; underscores are hyphens in names."""
    from weakly import methods  # noqa: PLC0415 - the packages are what is searched
    from weakly.methods import baselines  # noqa: PLC0415

    return {
        info.name.replace("_", "-"): f"{package.__name__}.{info.name}"
        for package in (methods, baselines)
        for info in pkgutil.iter_modules(package.__path__)
        if info.ispkg and info.name != "baselines"
    }
