"""Student folders, alike for every method: ``config.json``, ``student.safetensors`` and ``README.md``, a model card.

A method says once whose students it writes, then saves and loads::

    KIND = StudentKind("fma", "FMA-WSSS", "Foundation Model Assisted ... Segmentation, WACV 2024", FmaSettings)

    save_student(folder, KIND, network, settings, vocabulary, card, {"architecture": network.architecture()})

    saved = load_student(folder, KIND)  # saved.settings is an FmaSettings, saved.vocabulary a Vocabulary
    network = saved.build(lambda config: rebuild_network(config["architecture"], len(saved.vocabulary)))

What a student needs besides its weights to be built again (an architecture, the frozen model it was trained on) is
the method's own part of the config. No pickle is written or read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from weakly.errors import UserError
from weakly.files import write_atomic, write_json
from weakly.vocabulary import Vocabulary

_LISTED = 60
"""Category names that a model card lists; it counts the others."""

_VERSIONS = ("weakly", "torch", "torchvision", "transformers")

S = TypeVar("S")
T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class StudentKind(Generic[S]):
    """Whose students a folder holds.

    Attributes:
        method: name of the method, e.g. ``"fma"``.
        title: what cards and errors call it, e.g. ``"FMA-WSSS"``.
        paper: its title, venue and year.
        settings: the method's settings dataclass.
        version: of the method's own part of the config; a folder of another version is refused.
    """

    method: str
    title: str
    paper: str
    settings: type[S]
    version: int = 1

    @property
    def format(self) -> str:
        """What config and weights carry, e.g. ``"weakly-fma-1"``."""
        return f"weakly-{self.method}-{self.version}"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a student's model card says besides its categories, its size and its settings.

    Attributes:
        task: e.g. ``"semantic-segmentation"``.
        paragraphs: Markdown: what the student is, and what it was trained on.
        figures: data, metrics (with protocol and split), command ...; nested mappings give rows like ``data.name``.
        pipeline: the task in the words of model hubs.
    """

    task: str
    paragraphs: tuple[str, ...]
    figures: Mapping[str, Any]
    pipeline: str = "image-segmentation"


@dataclass(frozen=True, eq=False, slots=True)
class StudentFolder(Generic[S]):
    """What lies in a student folder.

    Attributes:
        path: the folder.
        config: everything that ``config.json`` says.
        settings: of the method.
        vocabulary: C categories.
        state: weights by name, on the CPU.
    """

    path: Path
    config: dict[str, Any]
    settings: S
    vocabulary: Vocabulary
    state: dict[str, Tensor]

    def read(self, make: Callable[[dict[str, Any]], T]) -> T:
        """What ``make`` makes of the config.

        Raises:
            UserError: ``make`` misses a key or meets one it does not know.
        """
        return _read(self.path / "config.json", self.config, make)

    def build(self, make: Callable[[dict[str, Any]], M]) -> M:
        """The student that ``make`` builds from the config, with its weights, in evaluation mode.

        Torch's random state on the CPU is left alone.

        Raises:
            UserError: the config lacks something, or the weights are those of another student.
        """
        with torch.random.fork_rng(devices=[]):
            student = self.read(make)
        load_weights(student, self.state)
        return student.eval()


def save_student(
    folder: Path,
    kind: StudentKind[S],
    student: nn.Module,
    settings: S,
    vocabulary: Vocabulary,
    card: ModelCard,
    described: Mapping[str, Any],
) -> None:
    """Write ``student.safetensors``, ``README.md`` and ``config.json``, each atomically, the config last.

    The same student gives the same bytes.

    Args:
        folder: made if it is not there.
        kind: whose student it is.
        student: its weights.
        settings: of the method, an instance of ``kind.settings``.
        vocabulary: its categories.
        card: of the student.
        described: the method's own part of the config: what the student needs to be built again.
    """
    plain = dataclasses.asdict(typing.cast("Any", settings))
    # Modules may share a tensor (Mask2Former's heads); safetensors wants each to have its own memory.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in student.state_dict().items()}
    weights = safetensors.torch.save(state, metadata={"format": kind.format})
    config = {
        "format": kind.format,
        "method": kind.method,
        **described,
        "settings": plain,
        "vocabulary": vocabulary.to_dict(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "versions": {name: _version(name) for name in _VERSIONS},
    }
    size = sum(parameter.numel() for parameter in student.parameters())
    write_atomic(folder / "student.safetensors", weights)
    write_atomic(folder / "README.md", _markdown(kind, card, vocabulary, {"parameters": size, "settings": plain}))
    write_json(folder / "config.json", config)


def load_student(folder: Path, kind: StudentKind[S], settings: S | None = None) -> StudentFolder[S]:
    """Read what :func:`save_student` wrote.

    Args:
        folder: of the student.
        kind: whose student it is.
        settings: in place of those in the folder.

    Raises:
        UserError: a file is missing, damaged, of another method or version, or the two do not belong together.
    """
    config, path = _read_config(folder / "config.json", kind), folder / "student.safetensors"
    try:
        weights = path.read_bytes()
        state = safetensors.torch.load(weights)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy the student folder again or train it again.") from error
    if hashlib.sha256(weights).hexdigest() != config.get("weights_sha256"):
        raise UserError(f"{path} does not belong to the config.json beside it; copy the whole student folder again.")
    own, vocabulary = _read(folder / "config.json", config, partial(_common, kind))
    return StudentFolder(folder, config, settings or own, vocabulary, state)


def load_weights(student: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fill all weights of ``student``.

    Raises:
        UserError: one is missing, unknown or of another shape.
    """
    try:
        student.load_state_dict(dict(state))
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n\t")[1].split()) if "\n\t" in str(error) else str(error)
        raise UserError(f"The weights do not fit the student: {reason} Use weights and settings of one run.") from error


def from_plain(settings: type[S], values: Mapping[str, Any]) -> S:
    """A settings dataclass from what JSON kept of it: sections become dataclasses and lists tuples again.

    Raises:
        TypeError: a key is unknown.
        UserError: a value is refused.
    """
    hints = typing.get_type_hints(settings)
    return settings(**{key: _restored(hints.get(key), value) for key, value in values.items()})


def _read_config(path: Path, kind: StudentKind[Any]) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a student folder that {kind.title} wrote.") from error
    if not isinstance(config, dict) or config.get("format") != kind.format:
        raise UserError(
            f"{path} describes no {kind.title} student ({kind.format}); give a student folder that {kind.title} wrote."
        )
    return config


def _common(kind: StudentKind[S], config: dict[str, Any]) -> tuple[S, Vocabulary]:
    return from_plain(kind.settings, config["settings"]), Vocabulary.from_dict(config["vocabulary"])


def _read(path: Path, config: dict[str, Any], make: Callable[[dict[str, Any]], T]) -> T:
    try:
        return make(config)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} lacks a key or has an unknown one ({reason}); use the version of weakly that wrote it."
        ) from error


def _markdown(kind: StudentKind[Any], card: ModelCard, vocabulary: Vocabulary, facts: Mapping[str, Any]) -> str:
    """The model card: front matter, paragraphs, categories, one table of figures and facts, the paper."""
    names, more = vocabulary.names[:_LISTED], len(vocabulary) - _LISTED
    shown = ", ".join(names) + (f" and {more} more" if more > 0 else "")
    lines = [
        "---",
        "library_name: weakly",
        f"pipeline_tag: {card.pipeline}",
        f"tags: [weakly-supervised, {card.task}, {kind.title.lower()}]",
        "---",
        "",
        f"# {kind.title} student",
        "",
        *(line for paragraph in card.paragraphs for line in (paragraph, "")),
        f"Categories ({len(vocabulary)}): {shown}.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in _flatten({**card.figures, **facts}).items()),
        "",
        f"Method: {kind.paper}.",
        "",
    ]
    return "\n".join(lines)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= _flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def _cell(value: Any) -> str:
    text = f"{value:.4f}" if isinstance(value, float) and abs(value) >= 1e-3 else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _restored(hint: Any, value: Any) -> Any:
    kinds = [kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)]
    if kinds and isinstance(value, Mapping):
        return from_plain(typing.cast("type[Any]", kinds[0]), value)
    return tuple(value) if isinstance(value, list) else value


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
