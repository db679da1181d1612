"""What every benchmark has: a command line, and the machine that its times depend on."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jsonargparse import auto_cli

from weakly.errors import WeaklyError


def run_command(function: Callable[..., int], args: Sequence[str] | None = None, *, as_positional: bool = False) -> int:
    """Call a function with the options of the command line; its exit code, or an error's and its one sentence."""
    try:
        code: int = auto_cli(function, as_positional=as_positional, args=None if args is None else list(args))
    except WeaklyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return code


def machine(device: torch.device) -> dict[str, Any]:
    """What the times depend on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
