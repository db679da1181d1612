"""Training of the weakly supervised detector on tags and proposals alone (spec weaksam, sections 3.3 and 3.4).

An update is a pure function of its number, the weights and Adam's state, so a stopped training goes on from its last
checkpoint and ends with the same bytes (CPU). Files of a training:

    detector-<id>.safetensors               the trained detector, with its settings
    detector-<id>.checkpoint.safetensors    weights, Adam's state and step of an unfinished training
    detector-<id>.jsonl                     a row per logged update: step, losses, learning rate
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weakly.errors import UserError, WeaklyError
from weakly.methods.stage_files import (
    UNREADABLE,
    below,
    optimizer_tensors,
    read_checkpoint,
    read_log,
    read_tensors,
    restore_optimizer,
    write_log,
    write_tensors,
)
from weakly.methods.weaksam.clue_data import step_seed
from weakly.methods.weaksam.drop_block import DropBlockSettings, hide
from weakly.methods.weaksam.wsod import WsodDetector, rebuild_detector, wsod_losses
from weakly.methods.weaksam.wsod_crops import CropSettings
from weakly.methods.weaksam.wsod_data import WsodBatch, WsodData, read_batches
from weakly.methods.weaksam.wsod_settings import WsodSettings, WsodTraining

FORMAT = "weakly-wsod-1"

LOG_EVERY = 10
"""Updates between two rows of the log, and between two looks at the loss."""


@dataclass(frozen=True)
class WsodFiles:
    """Where a training lies.

    Attributes:
        folder: of the run.
        identity: :func:`training_identity`.
    """

    folder: Path
    identity: str

    @property
    def detector(self) -> Path:
        """The trained detector."""
        return self.folder / f"detector-{self.identity[:12]}.safetensors"

    @property
    def checkpoint(self) -> Path:
        """An unfinished training."""
        return self.detector.with_suffix(".checkpoint.safetensors")

    @property
    def log(self) -> Path:
        """Losses."""
        return self.detector.with_suffix(".jsonl")


def training_identity(detector: WsodDetector, training: WsodTraining) -> str:
    """Hex digest of all that decides the trained weights besides the images: the fresh detector and the settings."""
    settings = {key: value for key, value in asdict(training).items() if key not in ("save_every", "workers")}
    digest = hashlib.sha256(json.dumps([asdict(detector.settings), detector.classes, settings]).encode())
    for name, value in detector.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def train_detector(
    detector: WsodDetector,
    data: WsodData,
    training: WsodTraining,
    files: WsodFiles,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Train ``detector`` in place and store it; one that is stored is loaded, an unfinished one goes on.

    Args:
        detector: freshly made, on the device it trains on; left in eval mode.
        data: see ``data.skipped`` for what is left out.
        training: settings.
        files: where it lies.
        progress: called with (updates done, updates in all).

    Raises:
        UserError: no image has both tags and proposals, or a stored detector does not fit.
        WeaklyError: the loss is not finite.
    """
    if files.detector.is_file():
        detector.load_state_dict(load_detector(files.detector).state_dict())
        detector.eval()
        return
    if not len(data.usable):
        raise UserError(
            f"None of the {len(data.keys)} training images has both tags and proposals; tag them, or lower the "
            "smallest side of proposals."
        )
    tell = progress or (lambda _done, _total: None)
    run = _Run(detector, training, files, data.digest)
    done, total = run.resume(), training.iterations
    tell(done, total)
    devices = [detector.device.index or 0] if detector.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        for step, batch in enumerate(read_batches(data, training, done), done):
            losses = run.update(step, batch)
            done = step + 1
            if done % LOG_EVERY == 0 or done in (1, total):
                run.log(done, losses)
            if done % training.save_every == 0 and done < total:
                run.save(done)
            tell(done, total)
    run.finish()


def load_detector(path: Path) -> WsodDetector:
    """The detector that a training stored, in eval mode on the CPU; nothing is fetched.

    Raises:
        UserError: the file is missing, damaged, or of another kind.
    """
    try:
        tensors, about = read_tensors(path)
        if about["format"] != FORMAT:
            raise UserError(f"{path} has format {about['format']!r}, not {FORMAT!r}; train the detector again.")
        stated: dict[str, Any] = about["settings"]
        if stated["drop_block"] is not None:
            stated["drop_block"] = DropBlockSettings(**stated["drop_block"])
        stated["crops"] = CropSettings(**stated["crops"])
        settings = WsodSettings(**{**stated, "branch_weights": tuple(stated["branch_weights"])})
        detector = rebuild_detector(settings, int(about["classes"]))
        detector.load_state_dict(tensors)
    except (*UNREADABLE, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip().rstrip(".") if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as a detector ({reason}); delete it to train again.") from error
    return detector.eval()


class _Run:
    """A training between two updates: what a checkpoint holds."""

    def __init__(self, detector: WsodDetector, training: WsodTraining, files: WsodFiles, data: str) -> None:
        self.detector, self.training, self.files, self.data = detector, training, files, data
        self.optimizers = {"detector": _adam(detector, training)}
        if detector.drop_block is not None:
            gate = torch.optim.Adam(
                detector.drop_block.parameters(), lr=training.gate_lr, weight_decay=training.weight_decay
            )
            gate.param_groups[0]["peak"] = training.gate_lr
            self.optimizers["gate"] = gate
        self.rows: list[dict[str, Any]] = []

    def update(self, step: int, batch: WsodBatch) -> dict[str, Tensor]:
        """The detector learns with parts of its RoIs hidden; then the gate learns to hide what hurts it most."""
        torch.manual_seed(step_seed(self.training.seed, step))
        detector = self.detector.train()
        factor = self.training.factor(step)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
        pixels = detector.prepare(batch.inputs)
        boxes = [each.to(detector.device, non_blocking=True) for each in batch.boxes]
        pooled = detector.pooled(pixels, boxes)
        if detector.drop_block is not None:
            with torch.no_grad():
                keep = detector.drop_block.keep(pooled)
            pooled = hide(pooled, keep)
        losses = wsod_losses(detector.heads(pooled), boxes, batch.tags, detector.settings)
        optimizer = self.optimizers["detector"]
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        optimizer.step()
        if detector.drop_block is not None:
            self._update_gate(pixels, boxes, batch.tags)
        return {name: value.detach() for name, value in losses.items()}

    def _update_gate(self, pixels: Tensor, boxes: list[Tensor], tags: Tensor) -> None:
        """A second pass through the new weights, whose gradient reaches the gate alone."""
        detector, gate = self.detector, self.detector.drop_block
        if gate is None:
            return
        with torch.no_grad():
            pooled = detector.pooled(pixels, boxes)
        losses = wsod_losses(detector.heads(gate(pooled)), boxes, tags, detector.settings)
        parameters = list(gate.parameters())
        gradients = torch.autograd.grad(-self.training.gate_weight * losses["loss"], parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizers["gate"].step()

    def log(self, step: int, losses: dict[str, Tensor]) -> None:
        """A row of the log.

        Raises:
            WeaklyError: the loss is not finite.
        """
        values = {name: round(float(value), 6) for name, value in losses.items()}
        if not math.isfinite(values["loss"]):
            raise WeaklyError(
                f"The loss of the weakly supervised detector is {values['loss']} at update {step}; lower lr in "
                "wsod_training."
            )
        self.rows.append({"step": step, **values, "lr": self.optimizers["detector"].param_groups[0]["lr"]})

    def save(self, step: int) -> None:
        """The log first, the checkpoint second: rows beyond a checkpoint are cut when it is read."""
        write_log(self.files.log, self.rows)
        tensors = {f"weights.{name}": value for name, value in self.detector.state_dict().items()}
        for prefix, adam in self.optimizers.items():
            tensors |= {f"{prefix}.{name}": value for name, value in optimizer_tensors(adam).items()}
        about = {"step": step, "data": self.data, "training": self.files.identity}
        write_tensors(self.files.checkpoint, tensors, about)

    def resume(self) -> int:
        """Put the last checkpoint of this training into place: updates done."""
        found = read_checkpoint(self.files.checkpoint, data=self.data, training=self.files.identity)
        if found is None:
            return 0
        tensors, about = found
        self.detector.load_state_dict(below(tensors, "weights."))
        for prefix, adam in self.optimizers.items():
            restore_optimizer(adam, below(tensors, f"{prefix}."))
        self.rows = read_log(self.files.log, about["step"])
        return int(about["step"])

    def finish(self) -> None:
        """Store the detector with all that is needed to build it anew."""
        write_log(self.files.log, self.rows)
        detector = self.detector.eval()
        about = {
            "format": FORMAT,
            "settings": asdict(detector.settings),
            "classes": detector.classes,
            "training": self.files.identity,
            "data": self.data,
        }
        write_tensors(self.files.detector, detector.state_dict(), about)
        self.files.checkpoint.unlink(missing_ok=True)


def _adam(detector: WsodDetector, training: WsodTraining) -> torch.optim.Optimizer:
    """Adam over all that trains but the gate; biases are faster and do not decay."""
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad and not name.startswith("drop_block."):
            groups.setdefault((name.startswith("refine."), name.endswith(".bias")), []).append(parameter)
    given = []
    for (refines, biases), parameters in groups.items():
        peak = training.lr * (training.refine_lr if refines else 1) * (training.bias_lr if biases else 1)
        decay = 0.0 if biases else training.weight_decay
        given.append({"params": parameters, "peak": peak, "lr": peak, "weight_decay": decay})
    return torch.optim.Adam(given, fused=detector.device.type == "cpu")
