"""From boxes, points, tags and names to segmentation masks, on frozen foundation models.

>>> from weakly import load, read_image
>>> predictor = load("runs/menagerie")
>>> segmentation = predictor.predict_images([read_image("cat.jpg", upright=True)])[0]
>>> segmentation.masks().shape, segmentation.labels
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weakly.data.catalog import open_dataset
    from weakly.data.dataset import Dataset
    from weakly.data.images import read_image
    from weakly.engine.load import load
    from weakly.errors import UserError, WeaklyError
    from weakly.foundation.promptable import PromptableSegmenter
    from weakly.foundation.sam import load_segmenter
    from weakly.labels import Boxes, Points, Sample, Tags
    from weakly.segmentation import Segmentation
    from weakly.vocabulary import Category, Vocabulary

__version__ = "0.1.0"

# Where each public name lives. Imported on first use: `import weakly` alone loads neither torch nor a model.
_HOMES = {
    "Boxes": "weakly.labels",
    "Category": "weakly.vocabulary",
    "Dataset": "weakly.data.dataset",
    "Points": "weakly.labels",
    "PromptableSegmenter": "weakly.foundation.promptable",
    "Sample": "weakly.labels",
    "Segmentation": "weakly.segmentation",
    "Tags": "weakly.labels",
    "UserError": "weakly.errors",
    "Vocabulary": "weakly.vocabulary",
    "WeaklyError": "weakly.errors",
    "load": "weakly.engine.load",
    "load_segmenter": "weakly.foundation.sam",
    "open_dataset": "weakly.data.catalog",
    "read_image": "weakly.data.images",
}

__all__ = [
    "Boxes",
    "Category",
    "Dataset",
    "Points",
    "PromptableSegmenter",
    "Sample",
    "Segmentation",
    "Tags",
    "UserError",
    "Vocabulary",
    "WeaklyError",
    "load",
    "load_segmenter",
    "open_dataset",
    "read_image",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'weakly' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
