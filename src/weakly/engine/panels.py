"""The stages of a method on a few images, kept in the run folder for the report: ``panels/<split>/``.

``panels.json`` lists ``{"image_id", "panels": [{"title", "kind", "file"}]}``; every file is a grey PNG of 8 or 16 bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from weakly.data.images import read_image
from weakly.engine.runs import Run
from weakly.files import write_folder, write_json
from weakly.methods.base import Panel

IMAGES = 4
"""Images whose stages are kept."""


def spread_out(scores: Sequence[float | None], count: int = IMAGES) -> list[int]:
    """Positions of ``count`` scores from the best to the worst, at even distances of rank; None never counts.

    Equal scores keep their order.
    """
    ranked = sorted((i for i, score in enumerate(scores) if score is not None), key=lambda i: -(scores[i] or 0.0))
    if len(ranked) <= count:
        return ranked
    return [ranked[round(k)] for k in np.linspace(0, len(ranked) - 1, count).tolist()]


def store_panels(run: Run, split: str, panels: Mapping[int | str, Sequence[Panel]]) -> None:
    """Put the panels of some images, by image id, in the place of the split's earlier ones. Images without any go."""

    def fill(folder: Path) -> None:
        rows: list[dict[str, Any]] = []
        for image_id, of_image in panels.items():
            listed: list[dict[str, str]] = []
            for panel in of_image:
                file = f"{len(rows):02d}-{len(listed)}-{panel.kind}.png"
                Image.fromarray(panel.values).save(folder / file)
                listed.append({"title": panel.title, "kind": panel.kind, "file": file})
            if listed:
                rows.append({"image_id": image_id, "panels": listed})
        write_json(folder / "panels.json", rows)

    write_folder(_folder(run, split), fill)


def read_panels(run: Run, split: str) -> dict[int | str, list[Panel]]:
    """What :func:`store_panels` has kept, by image id; nothing where there is nothing.

    Raises:
        UserError: a picture cannot be read.
    """
    folder = _folder(run, split)
    if not (folder / "panels.json").is_file():
        return {}
    return {
        row["image_id"]: [
            Panel(panel["title"], panel["kind"], read_image(folder / panel["file"], mode="index"))
            for panel in row["panels"]
        ]
        for row in json.loads((folder / "panels.json").read_text(encoding="utf-8"))
    }


def _folder(run: Run, split: str) -> Path:
    return run.folder / "panels" / split
