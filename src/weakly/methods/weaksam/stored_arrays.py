"""Arrays that are made once and kept in a file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from weakly.files import write_atomic

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
