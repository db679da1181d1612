"""Training of the clue networks on image tags alone (spec weaksam, section 1.2).

An update is a pure function of its number, the weights and AdamW's state, so a stopped training goes on from its last
checkpoint and ends with the same bytes (CPU). Files of a training:

    <name>-<id>.safetensors               the trained weights
    <name>-<id>.checkpoint.safetensors    weights, AdamW's state and step of an unfinished training
    <name>-<id>.jsonl                     a row per logged update (step, losses, learning rate) and per validation
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from weakly.errors import UserError, WeaklyError
from weakly.methods.optimisation import Optimisation, build_optimizer, parameter_groups
from weakly.methods.stage_files import (
    below,
    optimizer_tensors,
    read_checkpoint,
    read_log,
    restore_optimizer,
    write_log,
    write_tensors,
)
from weakly.methods.weaksam.class_tokens import ClueNetwork, soft_margin_loss
from weakly.methods.weaksam.clue_data import (
    ClueAugmentation,
    ClueBatches,
    ImageBank,
    TaggedImages,
    normalised,
    step_seed,
)

SAVE_EVERY = 100
"""Updates between two checkpoints."""

LOG_EVERY = 10
"""Updates between two rows of the log."""

SCORED_TOGETHER = 32
"""Images per forward pass of a validation."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class ClueTraining:
    """How a clue network is trained; the defaults are WeakTr's.

    Attributes:
        epochs: passes over the images.
        batch: images per update.
        lr: peak learning rate of batches of ``lr_base_batch`` images; it is scaled to the size of the batch.
        lr_base_batch: see ``lr``.
        warmup: epochs over which the rate rises in a line.
        warm_lr: where it starts.
        min_lr: where the cosine ends.
        weight_decay: of weights; biases, norms, tokens and positions have none.
        precision: ``bf16-mixed`` runs the networks in bfloat16.
        grad_clip: largest norm of the whole gradient; None: no clipping.
        augmentation: of the training views.
        side: images are shrunk to this long side when they are read; None: never.
        memory: bytes of images that are kept in memory; the others are read again for every batch.
        workers: processes that draw batches; 0: this one. The batches are the same.
        seed: of initial weights, order, views and left-out blocks.
        select: which weights are kept: the ``last``, or those of the epoch with the ``best`` mean average precision of
            the tags of validation images.
        validate_every: epochs between two validations.
    """

    epochs: int = 60
    batch: int = 64
    lr: float = 4e-4
    lr_base_batch: int = 512
    warmup: float = 5.0
    warm_lr: float = 1e-6
    min_lr: float = 1e-5
    weight_decay: float = 0.05
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    grad_clip: float | None = None
    augmentation: ClueAugmentation = field(default_factory=ClueAugmentation)
    side: int | None = 640
    memory: int = 4 << 30
    workers: int = 0
    seed: int = 504
    select: Literal["last", "best"] = "last"
    validate_every: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "lr", "lr_base_batch", "validate_every"):
            if getattr(self, name) <= 0:
                raise UserError(f"train.{name} is {getattr(self, name)}; give a number above 0.")
        for name in ("warmup", "warm_lr", "min_lr", "weight_decay", "memory", "workers", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"train.{name} is {getattr(self, name)}; give 0 or more.")
        if self.side is not None and self.side < 1:
            raise UserError(f"train.side is {self.side}; give a side of at least 1 pixel, or null.")

    def bank(self, paths: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> ImageBank:
        """Images within the memory that is allowed."""
        return ImageBank(paths, side=self.side, budget=self.memory, progress=progress)

    def rate(self, step: int, per_epoch: int, batch: int) -> float:
        """The learning rate of update ``step`` (0 is the first): a line, then half a cosine over all epochs.

        The cosine is that of the whole training, warm-up included, as in the released code.
        """
        peak, epoch = self.lr * batch / self.lr_base_batch, step / per_epoch
        if epoch < self.warmup:
            return self.warm_lr + (peak - self.warm_lr) * epoch / self.warmup
        end = min(self.min_lr, peak)
        return end + (peak - end) / 2 * (1 + math.cos(math.pi * min(1.0, epoch / self.epochs)))


@dataclass(frozen=True)
class ClueFiles:
    """Where a training lies.

    Attributes:
        folder: of the run.
        name: ``weaktr`` or ``mctformer``.
        identity: :func:`training_identity`.
    """

    folder: Path
    name: str
    identity: str

    @property
    def weights(self) -> Path:
        """The trained weights."""
        return self.folder / f"{self.name}-{self.identity[:12]}.safetensors"

    @property
    def checkpoint(self) -> Path:
        """An unfinished training."""
        return self.weights.with_suffix(".checkpoint.safetensors")

    @property
    def log(self) -> Path:
        """Losses and validations."""
        return self.weights.with_suffix(".jsonl")


def training_identity(network: ClueNetwork, training: ClueTraining) -> str:
    """Hex digest of all that decides the trained weights besides the images: the fresh network and the settings.

    How batches come to be (``memory``, ``workers``) is no part of it.
    """
    settings = {key: value for key, value in asdict(training).items() if key not in ("memory", "workers")}
    digest = hashlib.sha256(json.dumps([type(network).__name__, settings]).encode())
    digest.update(weights_digest(network).encode())
    return digest.hexdigest()


def weights_digest(network: torch.nn.Module) -> str:
    """Hex SHA-256 over every named weight."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def train_network(
    network: ClueNetwork,
    data: TaggedImages,
    training: ClueTraining,
    files: ClueFiles,
    identity: str,
    *,
    validation: TaggedImages | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Train ``network`` in place and store it; one that is stored is loaded, an unfinished one goes on.

    Args:
        network: freshly made; it stays on ``device``, in eval mode.
        data: training images and their tags.
        training: settings.
        files: where it lies.
        identity: digest of the training images and tags; a checkpoint of others is left aside.
        validation: images whose tags are scored after an epoch.
        device: torch device.
        progress: called with (updates done, updates in all).

    Raises:
        UserError: ``best`` weights are asked for without validation images, or stored weights do not fit.
        WeaklyError: the loss is not finite.
    """
    network.to(device)
    if load_weights(network, files.weights):
        return
    if training.select == "best" and validation is None:
        raise UserError("train.select is 'best' but there is no validation split; give one, or select 'last'.")
    tell = progress or (lambda _done, _total: None)
    batches = ClueBatches(data, training.augmentation, batch=training.batch, seed=training.seed)
    total = training.epochs * batches.per_epoch
    run = _Run(network, training, files, identity)
    done = run.resume()
    loader: DataLoader[Any] = DataLoader(
        batches, sampler=range(done, total), batch_size=None, num_workers=training.workers
    )
    tell(done, total)
    on_gpu = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=[torch.device(device).index or 0] if on_gpu else []):
        for step, (pixels, tags) in enumerate(loader, done):
            rate = training.rate(step, batches.per_epoch, batches.batch)
            losses = run.update(step, rate, pixels.to(device), tags.to(device))
            done = step + 1
            epoch = done / batches.per_epoch
            if done % LOG_EVERY == 0 or done in (1, total):
                run.log({"step": done, "epoch": round(epoch, 3), **_finite(losses, done, files.name), "lr": rate})
            if validation is not None and (epoch % training.validate_every == 0 or done == total):
                run.validate(done, validation, device)
            if done % SAVE_EVERY == 0 and done < total:
                run.save(done)
            tell(done, total)
    run.finish()


class _Run:
    """A training between two updates: what a checkpoint holds."""

    def __init__(self, network: ClueNetwork, training: ClueTraining, files: ClueFiles, identity: str) -> None:
        self.network, self.training, self.files, self.identity = network, training, files, identity
        optimisation = Optimisation(lr=training.lr, weight_decay=training.weight_decay, optimizer="adamw")
        groups = parameter_groups(network, optimisation, undecayed=network.undecayed())
        self.optimizer = build_optimizer(groups, optimisation)
        self.rows: Rows = []
        self.best: dict[str, Tensor] = {}
        self.best_map = -1.0

    def update(self, step: int, rate: float, pixels: Tensor, tags: Tensor) -> dict[str, Tensor]:
        """One update; its losses, without gradient."""
        torch.manual_seed(step_seed(self.training.seed, step))
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.training.precision == "bf16-mixed"):
            logits = self.network(pixels)
        losses = soft_margin_loss(logits, tags)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        if self.training.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.training.grad_clip)
        self.optimizer.step()
        return {name: value.detach() for name, value in losses.items()}

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def validate(self, step: int, data: TaggedImages, device: str) -> None:
        """Score the tags, and keep the weights if they are to be kept and the best so far."""
        score = mean_average_precision(tag_scores(self.network, data.images, self.training, device), data.tags)
        self.log({"step": step, "val_map": round(score, 6)})
        if self.training.select == "best" and score > self.best_map:
            self.best_map = score
            self.best = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}

    def save(self, step: int) -> None:
        """The log first, the checkpoint second: rows beyond a checkpoint are cut when it is read."""
        write_log(self.files.log, self.rows)
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        about = {"step": step, "data": self.identity, "training": self.files.identity, "best_map": self.best_map}
        write_tensors(self.files.checkpoint, tensors, about)

    def resume(self) -> int:
        """Put the last checkpoint of this training into place: updates done."""
        found = read_checkpoint(self.files.checkpoint, data=self.identity, training=self.files.identity)
        if found is None:
            return 0
        tensors, about = found
        self.network.load_state_dict(below(tensors, "network."))
        self.best, self.best_map = below(tensors, "best."), float(about["best_map"])
        restore_optimizer(self.optimizer, below(tensors, "optimizer."))
        self.rows = read_log(self.files.log, about["step"])
        return int(about["step"])

    def finish(self) -> None:
        """Store the weights that count and leave them in the network."""
        if self.training.select == "best":
            self.network.load_state_dict(self.best)
        write_log(self.files.log, self.rows)
        about = {"name": self.files.name, "training": self.files.identity, "data": self.identity}
        write_tensors(self.files.weights, self.network.state_dict(), about)
        self.files.checkpoint.unlink(missing_ok=True)
        self.network.eval()


def load_weights(network: ClueNetwork, path: Path) -> bool:
    """Put stored weights into ``network`` and set it to eval mode; False where there are none yet.

    Raises:
        UserError: the file is damaged or of another network.
    """
    if not path.is_file():
        return False
    try:
        network.load_state_dict(safetensors.torch.load(path.read_bytes()))
    except (OSError, RuntimeError, ValueError, safetensors.SafetensorError) as error:
        reason = str(error).strip().splitlines()[-1].strip().rstrip(".")
        raise UserError(f"{path} does not fit the network ({reason}); delete it to train again.") from error
    network.eval()
    return True


@torch.no_grad()
def tag_scores(network: ClueNetwork, images: ImageBank, training: ClueTraining, device: str = "cpu") -> Tensor:
    """(n, C) float32 class logits ``z_cls`` of whole images squeezed to the training views' size."""
    network.eval()
    size = (training.augmentation.crop, training.augmentation.crop)
    scores = []
    for start in range(0, len(images), SCORED_TOGETHER):
        shown = [images.image(i)[None] for i in range(start, min(start + SCORED_TOGETHER, len(images)))]
        views = [functional.interpolate(view, size, mode="bicubic", antialias=True) for view in shown]
        scores.append(network(normalised(torch.cat(views)).to(device)).z_cls.float())
    return torch.cat(scores).cpu()


def mean_average_precision(scores: Tensor, tags: Tensor) -> float:
    """Mean over the classes that any image shows of the average precision of ranking images; 0 without any.

    Args:
        scores: (n, C) float.
        tags: (n, C) bool.
    """
    order = torch.sort(scores, dim=0, descending=True, stable=True).indices
    hits = tags.gather(0, order).double()
    ranks = torch.arange(1, len(scores) + 1, dtype=torch.float64)[:, None]
    precisions = (hits.cumsum(0) / ranks * hits).sum(0) / hits.sum(0)
    shown = tags.any(0)
    return float(precisions[shown].mean()) if shown.any() else 0.0


def _finite(losses: dict[str, Tensor], step: int, name: str) -> dict[str, float]:
    values = {key: round(float(value), 6) for key, value in losses.items()}
    if not math.isfinite(values["loss"]):
        raise WeaklyError(f"The loss of {name} is {values['loss']} at update {step}; lower settings.train.lr.")
    return values
