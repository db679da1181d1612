"""Arrays that are made once and kept in a file each, and the folders of such files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from weakly.files import write_atomic, write_json

Arrays = Mapping[str, NDArray[Any]]


def stored_arrays(path: Path, make: Callable[[], Arrays]) -> Arrays:
    """The arrays of a file, or those that ``make`` gives, which are then written; a damaged file is made again.

    Args:
        path: named for all that decides the arrays.
        make: gives arrays by name.
    """
    try:
        found: Arrays = load(path.read_bytes())
    except (OSError, SafetensorError):
        made = {name: np.ascontiguousarray(values) for name, values in make().items()}
        write_atomic(path, save(made))
        return made
    return found


def open_store(root: Path, name: str, about: Mapping[str, Any]) -> tuple[Path, str]:
    """The folder of a store, with a description of what lies there, and the digest of that description.

    Args:
        root: folder of all stores of a kind.
        name: of the model that makes what is stored.
        about: all that decides what it makes of an image, as values that JSON can hold.
    """
    identity = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:40] or "model"
    folder = root / f"{readable}-{identity[:12]}"
    if not (folder / "settings.json").is_file():
        write_json(folder / "settings.json", {"name": name, **about})
    return folder, identity
