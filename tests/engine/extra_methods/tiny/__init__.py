"""A fifth method in one folder: it learns the mean relative box of every category and paints it on every image."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from weakly.data.dataset import Dataset
from weakly.errors import UserError
from weakly.methods.base import ImageSource, Learner, Method, Predictor, Score, Skipped, Workspace
from weakly.methods.optimisation import Optimisation, build_optimizer, build_schedule
from weakly.methods.sampling import EpochLoader, EpochSampler
from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary


@dataclass(frozen=True)
class TinySettings:
    """Settings of the tiny method."""

    presence: float = 0.5
    jitter: float = 0.01
    hidden: int = 4


class Boxes(TorchDataset[Any]):
    """Relative boxes (n, C, 4) and presence (n, C) of n images."""

    def __init__(self, boxes: Tensor, present: Tensor) -> None:
        self.boxes, self.present = boxes, present

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = torch.tensor(indices)
        return self.boxes[rows], self.present[rows]


class Student(nn.Module):
    """One box and one presence logit per category."""

    def __init__(self, classes: int, hidden: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(classes, hidden))
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(hidden, 5))

    def forward(self) -> tuple[Tensor, Tensor]:
        out = self.head(self.query)
        return out[:, :4], out[:, 4]


class TinyLearner(Learner):
    """Regresses boxes and presence."""

    def __init__(self, settings: TinySettings, vocabulary: Vocabulary, optimisation: Optimisation, steps: int) -> None:
        super().__init__()
        self.settings, self.vocabulary, self.optimisation, self.steps = settings, vocabulary, optimisation, steps
        self.student = Student(len(vocabulary), settings.hidden)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        boxes, present = batch
        predicted, logits = self.student()
        distance = (predicted - boxes).abs().mean(-1)
        box_loss = (distance * present).sum() / present.sum().clamp(min=1)
        return box_loss + nn.functional.binary_cross_entropy_with_logits(logits.expand_as(present), present)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        boxes, present = batch
        loss = self.loss((boxes + self.settings.jitter * torch.randn_like(boxes), present))
        self.log("train/loss", loss.detach(), batch_size=len(boxes))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.log("val/loss", self.loss(batch), batch_size=len(batch[0]), on_epoch=True)

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.student.parameters(), self.optimisation)
        schedule = build_schedule(optimizer, self.optimisation, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def loader(self, data: Boxes, *, batch_size: int, shuffle: bool, seed: int) -> EpochLoader:
        return EpochLoader(data, EpochSampler(len(data), seed=seed, shuffle=shuffle), batch_size=batch_size)


class TinyPredictor(Predictor):
    """Paints the boxes of categories that are likely enough."""

    def __init__(self, boxes: Tensor, presence: Tensor, vocabulary: Vocabulary, threshold: float) -> None:
        self.boxes, self.presence, self.vocabulary, self.threshold = boxes, presence, vocabulary, threshold

    def predict(self, sources: Sequence[ImageSource], *, batch_size: int) -> Iterator[Segmentation | Skipped]:
        for source in sources:
            try:
                height, width = source.read().shape[:2]
            except UserError as error:
                yield Skipped(source.image_id, source.path, str(error))
                continue
            labels = [c for c in range(len(self.vocabulary)) if self.presence[c] >= self.threshold]
            masks = np.zeros((len(labels), height, width), bool)
            for mask, label in zip(masks, labels, strict=True):
                x0, y0, x1, y1 = (
                    (self.boxes[label] * torch.tensor([width, height, width, height])).round().int().tolist()
                )
                mask[max(y0, 0) : y1, max(x0, 0) : x1] = True
            yield Segmentation.from_masks(
                masks, labels, self.presence[labels].numpy(), [{"method": "tiny"}] * len(labels)
            )


class TinyMethod(Method):
    """The verbs."""

    name: ClassVar[str] = "tiny"
    Settings: ClassVar[type[Any]] = TinySettings
    supervisions: ClassVar[tuple[str, ...]] = ("box",)
    presets: ClassVar[dict[str, Any]] = {"paper": {"optimisation": {"epochs": 7}, "settings": {"hidden": 8}}}
    predicts_with: ClassVar[tuple[str, ...]] = ("presence",)

    def prepare(self, settings: TinySettings, dataset: Dataset, workspace: Workspace) -> Boxes:
        boxes = torch.zeros(len(dataset), len(dataset.vocabulary), 4)
        present = torch.zeros(len(dataset), len(dataset.vocabulary))
        for row, sample in enumerate(dataset):
            height, width = sample.size
            if sample.boxes is None:
                continue
            relative = torch.from_numpy(sample.boxes.xyxy / np.array([width, height, width, height], np.float32))
            boxes[row, torch.from_numpy(sample.boxes.labels)] = relative
            present[row, torch.from_numpy(sample.boxes.labels)] = 1
        return Boxes(boxes, present)

    def learner(
        self, settings: TinySettings, vocabulary: Vocabulary, optimisation: Optimisation, total_steps: int
    ) -> TinyLearner:
        return TinyLearner(settings, vocabulary, optimisation, total_steps)

    def save(self, learner: Learner, folder: Path, card: dict[str, Any]) -> None:
        assert isinstance(learner, TinyLearner)
        safetensors.torch.save_file(dict(learner.student.state_dict()), folder / "student.safetensors")
        config = {"method": "tiny", "vocabulary": learner.vocabulary.to_dict(), "settings": asdict(learner.settings)}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "README.md").write_text(f"# tiny\n\nepoch {card['epoch']}\n")

    def load(self, folder: Path, workspace: Workspace, settings: TinySettings | None = None) -> TinyPredictor:
        config = json.loads((folder / "config.json").read_text())
        settings = settings or self.Settings(**config["settings"])
        vocabulary = Vocabulary.from_dict(config["vocabulary"])
        student = Student(len(vocabulary), settings.hidden).eval()
        student.load_state_dict(safetensors.torch.load_file(folder / "student.safetensors"))
        with torch.no_grad():
            boxes, logits = student()
        return TinyPredictor(boxes, logits.sigmoid(), vocabulary, settings.presence)

    def references(self, settings: TinySettings, dataset: Dataset, workspace: Workspace) -> list[Score]:
        return [Score("oracle", "box", lambda: (_fill_boxes(dataset, i) for i in range(len(dataset))), lambda: "boxes")]


def _fill_boxes(dataset: Dataset, index: int) -> Segmentation:
    sample = dataset[index]
    boxes = [] if sample.boxes is None else sample.boxes.xyxy.round().astype(int)
    masks = np.zeros((len(boxes), *sample.size), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return Segmentation.from_masks(masks, [] if sample.boxes is None else sample.boxes.labels)


METHOD = TinyMethod()
