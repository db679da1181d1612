"""A recipe: everything that decides what a run computes, in one YAML file with typed sections."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from weakly.engine.typed import build, to_plain, unknown_key
from weakly.errors import UserError
from weakly.evaluation.pairs import OfficialOptions
from weakly.methods.base import Method, find_method
from weakly.methods.optimisation import Optimisation


@dataclass(frozen=True)
class RenderSettings:
    """The menagerie world to draw where ``data.root`` does not hold it yet.

    Attributes:
        layout: of the files: ``partimagenet`` (parts; ``data.kind: menagerie``), ``voc`` (whole things, with tags;
            ``data.kind: voc``) or ``kinds`` (parts of object kinds; ``data.kind: menagerie``).
        train, val, test: numbers of images of the three splits.
        seed: same seed, same world.
        size: side of the square images in pixels.
        kinds: names of the object kinds that occur; null: all of them.
        workers: processes that draw; None: one per core.
    """

    layout: Literal["partimagenet", "voc", "kinds"] = "partimagenet"
    train: int = 1000
    val: int = 100
    test: int = 0
    seed: int = 0
    size: int = 256
    kinds: tuple[str, ...] | None = None
    workers: int | None = None

    def splits(self) -> dict[str, int]:
        """The splits that hold images."""
        counts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: count for name, count in counts.items() if count > 0}


@dataclass(frozen=True)
class DataSettings:
    """Where images and weak labels are.

    Attributes:
        kind: which reader, e.g. ``menagerie``, ``partimagenet``, ``coco``, ``carparts``.
        root: the dataset's folder.
        train, val, test: names of the splits; ``val`` and ``test`` may be null.
        annotations: annotation file inside ``root``; ``{split}`` stands for the split's name.
        images: image folder inside ``root``; ``{split}`` likewise.
        limit_train, limit_val: use a seeded random choice of this many images only.
        seed: seeds that choice.
        bad_polygons: what a degenerate polygon ring costs: ``ring``, or ``annotation`` as in the released WPS-SAM code.
        render: draw the menagerie into ``root`` on first use.
    """

    kind: str
    root: str
    train: str = "train"
    val: str | None = "val"
    test: str | None = None
    annotations: str | None = None
    images: str | None = None
    limit_train: int | None = None
    limit_val: int | None = None
    seed: int = 0
    bad_polygons: Literal["ring", "annotation"] = "ring"
    render: RenderSettings | None = None


@dataclass(frozen=True)
class FeatureSettings:
    """Where frozen features are kept and how exactly.

    Attributes:
        root: folder of all feature stores, shared between runs.
        dtype: ``float32`` is exact; ``float16`` and ``int8`` are smaller.
        budget_gb: gigabytes (2^30 bytes) of features that may be held in memory.
    """

    root: str = "features"
    dtype: Literal["float32", "float16", "int8"] = "float16"
    budget_gb: float = 4.0


@dataclass(frozen=True)
class EvaluationSettings:
    """What is scored after training.

    Attributes:
        student: ``last``, or ``best``: the epoch with the lowest ``criterion``.
        criterion: a logged validation value that needs no mask; lower is better.
        split: the split that is scored; null: ``data.val``, else ``data.test``, else ``data.train``.
        batch_size: images predicted at a time.
        references: also score the method's upper bounds (true boxes, true points).
        frame_side: side in pixels of the square in which ``official_rowwise`` compares rows; SAM's is 1024.
        protocol: the headline among the protocols; all of them are always computed.
        official: the batches and ranks that ``official_rowwise`` imitates.
    """

    student: Literal["last", "best"] = "last"
    criterion: str = "val/loss"
    split: str | None = None
    batch_size: int = 16
    references: bool = True
    frame_side: int = 1024
    protocol: Literal["dataset41", "dataset40", "pair_binary", "official_rowwise"] = "dataset41"
    official: OfficialOptions = field(default_factory=OfficialOptions)


@dataclass(frozen=True)
class Recipe:
    """One run, resolved: preset, then file, then options of the command line.

    Attributes:
        method: folder name of the method.
        data: see :class:`DataSettings`.
        preset: the method's named set of defaults, e.g. ``default``, ``paper``, ``official``.
        settings: the method's own ``Settings``.
        optimisation: see :class:`~weakly.methods.optimisation.Optimisation`.
        features: see :class:`FeatureSettings`.
        evaluation: see :class:`EvaluationSettings`.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        devices: processes to train on; more than one is DDP.
        checkpoint_minutes: how often a checkpoint is written inside an epoch; one more at the end of each.
    """

    method: str
    data: DataSettings
    preset: str = "default"
    settings: Any = None
    optimisation: Optimisation = field(default_factory=Optimisation)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    device: str = "auto"
    devices: int = 1
    checkpoint_minutes: float = 5.0

    def to_yaml(self) -> str:
        """The resolved recipe as a recipe file: every key, no default left open."""
        return yaml.safe_dump(to_plain(self), sort_keys=False, allow_unicode=True)

    def evaluated_split(self) -> str:
        """The split that is scored after training."""
        return self.evaluation.split or self.data.val or self.data.test or self.data.train


Override = tuple[str, str]
"""A dotted key and its YAML value, as ``--optimisation.epochs 3`` gives them."""


def load_recipe(path: Path, overrides: Sequence[Override] = ()) -> Recipe:
    """Read a recipe file, put it over its preset and the overrides over both.

    Args:
        path: a YAML file.
        overrides: dotted keys and values, the last one wins.

    Raises:
        UserError: the file is missing or no YAML, the method or preset is unknown, or keys and values are wrong; all
            wrong keys and values are named in one message.
    """
    return resolve_recipe(read_yaml(path), overrides, str(path))


def resolve_recipe(values: Mapping[str, Any], overrides: Sequence[Override], name: str) -> Recipe:
    """The recipe of plain values, as :func:`load_recipe` makes it of a file.

    Args:
        values: sections and keys as YAML holds them; left as they are.
        overrides: see :func:`load_recipe`.
        name: what an error calls it.

    Raises:
        UserError: see :func:`load_recipe`.
    """
    changed = dict(values)
    errors: list[str] = []
    for key, text in overrides:
        _put(changed, key, _parse(text), errors)
    recipe = _resolve(changed, errors)
    if recipe is None or errors:
        count = "1 thing is" if len(errors) == 1 else f"{len(errors)} things are"
        raise UserError(f"{name}: {count} wrong: {'; '.join(errors)}.")
    return recipe


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds one mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise UserError(f"The recipe {path} cannot be read ({reason}); give the path of a YAML file.") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it is malformed"
        raise UserError(f"{path}{where}: this is not valid YAML: {problem}; mend that line.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no keys; a recipe has at least `method:` and `data:`.")
    return values


def differences(old: Mapping[str, Any], new: Mapping[str, Any], key: str = "") -> list[str]:
    """Dotted keys whose values differ, as ``key (old -> new)``."""
    found = []
    for name in dict.fromkeys([*old, *new]):
        inner = f"{key}.{name}" if key else name
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, inner)
        elif before != after:
            found.append(f"{inner} ({before} -> {after})")
    return found


def _resolve(values: dict[str, Any], errors: list[str]) -> Recipe | None:
    """The recipe of merged values; mistakes are appended to ``errors``."""
    method = _method(values, errors)
    if method is not None:
        values = _with_preset(method, values, errors)
        settings = build(method.Settings, values.get("settings") or {}, "settings", errors)
        values = {**values, "settings": settings}
    for section in ("optimisation", "features", "evaluation"):
        if values.get(section, {}) is None:
            values = {key: value for key, value in values.items() if key != section}
    recipe: Recipe | None = build(Recipe, values, "", errors)
    return recipe


def _method(values: Mapping[str, Any], errors: list[str]) -> Method | None:
    if not isinstance(values.get("method"), str):
        return None  # named as missing or wrong when the whole recipe is built
    try:
        return find_method(values["method"])
    except UserError as error:
        errors.append(f"`method`: {str(error).rstrip('.')}")
        return None


def _with_preset(method: Method, values: dict[str, Any], errors: list[str]) -> dict[str, Any]:
    presets = method.presets
    name = values.get("preset", "default")
    if name in presets:
        return _merge(presets[name], values)
    if name != "default":
        errors.append(unknown_key("preset", str(name), ["default", *presets]).replace("`preset`", f"`preset: {name}`"))
    return values


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def _put(values: dict[str, Any], dotted: str, value: Any, errors: list[str]) -> None:
    """Set a dotted key; the mapping is changed in place, sections are made as needed."""
    *sections, name = dotted.split(".")
    for section in sections:
        inner = values.get(section)
        if inner is not None and not isinstance(inner, dict):
            errors.append(f"`{dotted}`: `{section}` is a value, not a section")
            return
        values[section] = dict(inner or {})
        values = values[section]
    values[name] = value


def _parse(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def recipe_keys() -> list[str]:
    """Dotted keys every recipe knows; the method's settings come on top."""
    keys = []
    for name, hint in typing.get_type_hints(Recipe).items():
        inner = typing.get_type_hints(hint) if hasattr(hint, "__dataclass_fields__") else {}
        keys += [f"{name}.{key}" for key in inner] or [name]
    return keys
