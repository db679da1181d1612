"""What the commands under ``weakly data`` and ``weakly features`` do.

As in :mod:`weakly.commands`, heavy modules are imported by the commands that need them.
"""

# ruff: noqa: PLC0415, T201 - see above; and printing is what commands are for

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from weakly.commands import DONE, DONE_WITH_SKIPS, FAILED, print_skipped
from weakly.errors import UserError


def data_make(
    root: Path,
    layout: Literal["partimagenet", "voc", "kinds"] = "partimagenet",
    train: int = 1000,
    val: int = 100,
    test: int = 0,
    seed: int = 0,
    size: int = 256,
    kinds: list[str] | None = None,
    workers: int | None = None,
) -> int:
    """Draw the menagerie, a world of animals and things with parts, in the layout of a real dataset.

    Args:
        root: folder to write; a stopped drawing goes on.
        layout: partimagenet (COCO JSON and part maps), voc (XML, PNG and ImageSets), or kinds (as partimagenet, with
            parts of object kinds, e.g. horse's head).
        train: number of training images.
        val: number of validation images.
        test: number of test images.
        seed: same seed, same world.
        size: side of the square images in pixels.
        kinds: names of the object kinds that occur, e.g. [fox,sedan]; default: all of them.
        workers: processes that draw; default: one per core.
    """
    splits = {name: count for name, count in {"train": train, "val": val, "test": test}.items() if count > 0}
    if not splits:
        raise UserError("No image is asked for; give --train, --val or --test a number above 0.")
    from weakly.data.menagerie.layouts import WRITERS
    from weakly.engine.logs import show_progress

    WRITERS[layout](
        root,
        splits,
        seed=seed,
        size=size,
        kinds=kinds,
        workers=workers,
        progress=partial(show_progress, f"drawing {root}"),
    )
    print(f"{root}: {', '.join(f'{count} {name}' for name, count in splits.items())} images")
    return DONE


def data_check(
    kind: str,
    root: Path | None = None,
    split: str = "train",
    annotations: Path | None = None,
    images: Path | None = None,
    queries: int = 25,
    fast: bool = False,
    json: Path | None = None,
) -> int:
    """Report every problem of a dataset with file, index and remedy. Nothing is changed.

    Args:
        kind: menagerie, partimagenet, carparts, coco, pascal-part-60, pascal-part-mat or pascal-part-compositor; with
            parts of named objects: pascal-part-116, ade20k-part-234 or partimagenet-40; with tags: voc, voc-xml,
            coco2014, coco-tags, tags or class-folders.
        root: the dataset's folder.
        split: train, val, test, as the kind names them.
        annotations: annotation file, for coco; folder of .mat files, for pascal-part-mat.
        images: image folder, for coco.
        queries: report images with more instances than this.
        fast: read headers only, do not decode the images.
        json: also write the report here as JSON.
    """
    from weakly.data.check import check
    from weakly.engine.logs import show_progress
    from weakly.files import write_json

    report = check(
        kind,
        root,
        split,
        annotations=annotations,
        images=images,
        queries=queries,
        fast=fast,
        progress=partial(show_progress, "checking"),
    )
    print(report.text())
    if json is not None:
        write_json(json, report.to_dict())
    return report.exit_code


def data_convert(
    root: Path,
    out: Path,
    layout: Literal["pascal-part-60", "pascal-part-116"] = "pascal-part-60",
    split: str = "train",
    annotations: Path | None = None,
    image_set: Path | None = None,
) -> int:
    """Write the raw annotations of Pascal-Part (.mat) in a layout that opens quickly. A stopped conversion goes on.

    The layout becomes the dataset's kind. Parts are merged as the tables of this package say.

    Args:
        root: folder of VOC 2010 with JPEGImages/, ImageSets/ and Annotations_Part/; nothing in it is changed.
        out: folder to write; images are copied.
        layout: pascal-part-60 (boxes on the parts of every object, for wps), or pascal-part-116 (label maps with the
            classes of OV-PARTS, for partclip).
        split: train or val.
        annotations: folder of .mat files; default: Annotations_Part below the root.
        image_set: text file with one stem per line; default: ImageSets/Main/SPLIT.txt below the root.
    """
    from weakly.data.pascal_part_raw import convert_split
    from weakly.engine.logs import show_progress

    done = convert_split(
        root,
        out,
        split,
        layout,
        annotations=annotations,
        image_set=image_set,
        progress=partial(show_progress, f"converting {split}"),
    )
    for problem in done.problems:
        print(problem)
    print(
        f"{out}: {done.images} {split} images as {layout}, parts merged by version {done.merges_version} of its table"
    )
    return DONE_WITH_SKIPS if any(problem.severity == "error" for problem in done.problems) else DONE


def features_build(
    recipe: Path,
    split: str | None = None,
    device: str | None = None,
) -> int:
    """Compute the frozen features of a recipe's images, once. A stopped build goes on.

    Args:
        recipe: a recipe file.
        split: one split; default: training and validation.
        device: auto, cpu, cuda, mps; default: the recipe's.
    """
    from weakly.engine.recipe import load_recipe
    from weakly.engine.runs import Run, workspace
    from weakly.engine.splits import open_split
    from weakly.methods.base import find_method

    loaded = load_recipe(recipe, [("device", device)] if device else [])
    splits = [split] if split else [name for name in (loaded.data.train, loaded.data.val) if name]
    space = workspace(Run(Path(loaded.features.root)), loaded)
    method = find_method(loaded.method)
    unaugmented = method.unaugmented(loaded.settings)
    skipped = 0
    for name in splits:
        dataset = open_split(loaded.data, name)
        trained_on = name == loaded.data.train
        prepared = method.prepare(loaded.settings if trained_on else unaugmented, dataset, space)
        left_out = tuple(getattr(prepared, "skipped", ()))
        skipped += len(left_out)
        print(f"{dataset.name} {name}: {len(dataset) - len(left_out)} images ready in {space.features}")
        print_skipped(left_out)
    return DONE_WITH_SKIPS if skipped else DONE


def features_list(root: Path = Path("features")) -> int:
    """List feature stores: what they hold and how large they are.

    Args:
        root: folder of all feature stores.
    """
    from weakly.foundation.features import list_stores

    stores = list_stores(root)
    for store in stores:
        identity = store.identity
        print(f"{store.folder}  {identity.dtype}  {len(store)} images  {store.nbytes / (1 << 20):.1f} MiB")
    if not stores:
        print(f"{root} holds no feature store")
    return DONE


def features_verify(root: Path = Path("features")) -> int:
    """Read every stored feature and compare it with its hash.

    Args:
        root: folder of all feature stores.
    """
    from weakly.foundation.features import list_stores

    problems = [problem for store in list_stores(root) for problem in store.verify()]
    for problem in problems:
        print(problem)
    print(f"{root}: {len(problems)} problems")
    return FAILED if problems else DONE


def features_remove(store: Path, yes: bool = False) -> int:
    """Remove one feature store; the images it was computed from stay.

    Args:
        store: its folder, as `weakly features list` prints it.
        yes: really do it.
    """
    from weakly.foundation.features import FeatureStore

    found = FeatureStore.at(store)
    if not yes:
        raise UserError(f"{store} holds features of {len(found)} images; add --yes to remove them.")
    found.remove()
    print(f"{store} is removed")
    return DONE
