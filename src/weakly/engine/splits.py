"""A recipe's splits as datasets; the bundled world is drawn on first use."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from weakly.data.catalog import open_dataset
from weakly.data.dataset import Dataset
from weakly.engine.logs import show_progress
from weakly.engine.recipe import DataSettings


def open_split(data: DataSettings, split: str) -> Dataset:
    """The dataset of one split, limited as the recipe says.

    Raises:
        UserError: the split is not there or cannot be read.
    """
    ensure_rendered(data)
    limited = without_render(data)
    dataset = open_dataset(
        data.kind,
        Path(data.root),
        split,
        annotations=_for_split(data.annotations, split),
        images=_for_split(data.images, split),
        limit={data.train: limited.limit_train, data.val: limited.limit_val}.get(split),
        seed=data.seed,
        bad_polygons=data.bad_polygons,
    )
    # A rendered world is the menagerie in whatever layout: tables must not take it for the photographs of VOC.
    return dataset if data.render is None else replace(dataset, name="menagerie")


def ensure_rendered(data: DataSettings) -> None:
    """Draw the menagerie into ``data.root`` where the recipe asks for it: what is missing of it, and nothing else.

    Raises:
        UserError: ``data.root`` holds another world (seed or size differ) or something else.
    """
    render = data.render
    if render is None:
        return
    from weakly.data.menagerie.layouts import WRITERS  # noqa: PLC0415 - the renderer is only loaded to draw

    WRITERS[render.layout](
        Path(data.root),
        render.splits(),
        seed=render.seed,
        size=render.size,
        kinds=render.kinds,
        workers=render.workers,
        progress=partial(show_progress, f"drawing {data.root}"),
    )


def without_render(data: DataSettings) -> DataSettings:
    """The same images, never drawn: for commands that only read.

    A world may have grown since for another recipe; its first images are the ones this recipe draws.
    """
    if data.render is None:
        return data
    return replace(
        data,
        render=None,
        limit_train=data.limit_train or data.render.train or None,
        limit_val=data.limit_val or data.render.val or None,
    )


def _for_split(pattern: str | None, split: str) -> Path | None:
    return None if pattern is None else Path(pattern.replace("{split}", split))
