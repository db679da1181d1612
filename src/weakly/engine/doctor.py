"""Is this installation fit to work? One line per check, with a remedy where the answer is no."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from weakly.engine.runs import resolve_device, versions
from weakly.errors import WeaklyError

LEAST_FREE_GB = 2.0
PARITY_TOLERANCE = 1e-3
"""Largest difference between devices that counts as the same embedding; its values are of the order of 1."""


@dataclass(frozen=True)
class Finding:
    """One check: its name, whether it passed, and what was found or is to be done."""

    name: str
    ok: bool
    message: str


def examine(folder: Path) -> list[Finding]:
    """Run every check; nothing is changed but a file that is written to ``folder`` and removed.

    Args:
        folder: where runs and features would go.
    """
    checks: list[tuple[str, Callable[[], str]]] = [
        ("versions", lambda: ", ".join(f"{name} {version}" for name, version in versions().items())),
        ("torch", _torch),
        ("bundled segmenter", _bundled),
        ("devices", _devices),
        ("threads", lambda: f"torch uses {torch.get_num_threads()} of {os.cpu_count()} cores"),
        ("disk", lambda: _disk(folder)),
        ("writing", lambda: _writing(folder)),
        ("network", _network),
    ]
    return [_run(name, check) for name, check in checks]


def _run(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, ok=True, message=check())
    except (WeaklyError, OSError, RuntimeError, ImportError) as error:
        return Finding(name, ok=False, message=str(error))


def _torch() -> str:
    product = torch.eye(3) @ torch.ones(3, 3)
    if not torch.equal(product, torch.ones(3, 3)):
        raise WeaklyError("torch multiplies wrongly on this CPU; install it again from the ordinary index.")
    from torchvision.ops import nms  # type: ignore[import-untyped]  # noqa: PLC0415 - a broken pairing of torch and torchvision fails here

    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
    kept = nms(boxes, torch.tensor([0.9, 0.8]), 0.5)
    if kept.tolist() != [0]:
        raise WeaklyError("torchvision's operators do not work; install torch and torchvision from the same index.")
    return "tensors and torchvision operators work"


def _bundled() -> str:
    from weakly.foundation.sam import load_segmenter  # noqa: PLC0415 - loads transformers

    segmenter = load_segmenter("bundled")
    return f"weights are intact, fingerprint {segmenter.fingerprint[:12]}"


def _devices() -> str:
    """The same embedding on the CPU and on the accelerator, where there is one."""
    best = resolve_device("auto")
    if best == "cpu":
        return "cpu only"
    from weakly.foundation.sam import load_segmenter  # noqa: PLC0415 - loads transformers

    cpu, other = load_segmenter("bundled"), load_segmenter("bundled", device=best)
    pixels = torch.randn(1, 3, cpu.side, cpu.side, generator=torch.Generator().manual_seed(0))
    difference = float((cpu.encode(pixels) - other.encode(pixels.to(other.device)).cpu()).abs().max())
    if difference > PARITY_TOLERANCE:
        raise WeaklyError(
            f"{best} and cpu differ by {difference:.2g} in an embedding (allowed: {PARITY_TOLERANCE}); "
            "use --device cpu."
        )
    return f"cpu and {best} agree to {difference:.1g}"


def _disk(folder: Path) -> str:
    existing = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(existing).free / (1 << 30)
    if free < LEAST_FREE_GB:
        raise WeaklyError(f"{existing} has {free:.1f} GB left; free at least {LEAST_FREE_GB:.0f} GB for the features.")
    return f"{free:.1f} GB free at {existing}"


def _writing(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"weakly")
    return f"{folder} can be written"


def _network() -> str:
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    state = "HF_HUB_OFFLINE is set: hub ids only load from the local cache" if offline else "hub ids may be downloaded"
    return f"not needed for the bundled models; {state}"
