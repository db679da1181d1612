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
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from weakly.errors import UserError, WeaklyError
from weakly.files import write_atomic
from weakly.methods.sampling import epoch_order
from weakly.methods.weaksam.clue_data import step_seed
from weakly.methods.weaksam.drop_block import DropBlockSettings, hide
from weakly.methods.weaksam.wsod import WsodDetector, WsodSettings, rebuild_detector, roi_view, wsod_losses

FORMAT = "weakly-wsod-1"

LOG_EVERY = 10
"""Updates between two rows of the log, and between two looks at the loss."""


@dataclass(frozen=True)
class WsodTraining:
    """How the detector is trained; the defaults are those of MIST on VOC07.

    Attributes:
        iterations: updates.
        batch: views per update.
        lr: of weights, after the warm-up.
        bias_lr: learning rate of biases over that of weights.
        refine_lr: learning rate of the refinement branches over that of the rest.
        weight_decay: of weights; biases have none.
        steps: updates from which on the rate is multiplied by ``gamma`` once more.
        gamma: see ``steps``.
        warmup: updates over which the rate rises in a line.
        warmup_factor: of the rate, where the warm-up starts.
        gate_lr: learning rate of the drop block's network, with the same schedule.
        gate_weight: of the detector's loss, which that network makes larger.
        sizes: short sides of views in pixels, drawn evenly.
        max_size: largest long side of a view.
        flip: probability of mirroring left to right.
        save_every: updates between two checkpoints; a multiple of 10 looks at the loss first.
        workers: threads that read images ahead. The batches are the same.
        seed: of order, views, dropout and hidden parts.
    """

    iterations: int = 30_000
    batch: int = 8
    lr: float = 1e-5
    bias_lr: float = 2.0
    refine_lr: float = 1.0
    weight_decay: float = 5e-4
    steps: tuple[int, ...] = (20_000, 26_700)
    gamma: float = 0.1
    warmup: int = 200
    warmup_factor: float = 1 / 3
    gate_lr: float = 1e-5
    gate_weight: float = 0.01
    sizes: tuple[int, ...] = (480, 576, 688, 864, 1000, 1200)
    max_size: int = 2000
    flip: float = 0.5
    save_every: int = 500
    workers: int = 2
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "lr", "save_every", "workers"):
            if getattr(self, name) <= 0:
                raise UserError(f"wsod_training.{name} is {getattr(self, name)}; give a number above 0.")
        for name in ("bias_lr", "refine_lr", "weight_decay", "gamma", "warmup", "gate_lr", "gate_weight", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"wsod_training.{name} is {getattr(self, name)}; give 0 or more.")
        for name in ("warmup_factor", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"wsod_training.{name} is {getattr(self, name)}; give a number in [0, 1].")
        if not self.sizes or not 1 <= min(self.sizes) <= max(self.sizes) <= self.max_size:
            raise UserError(
                f"wsod_training.sizes is {list(self.sizes)} and max_size is {self.max_size}; give short sides of at "
                "least 1 pixel and none above max_size."
            )
        if list(self.steps) != sorted(self.steps):
            raise UserError(f"wsod_training.steps is {list(self.steps)}; give them in ascending order.")

    def factor(self, step: int) -> float:
        """What learning rates are multiplied by at update ``step`` (0 is the first)."""
        rise = min(1.0, step / self.warmup) if self.warmup else 1.0
        warm = self.warmup_factor + (1 - self.warmup_factor) * rise
        return warm * self.gamma ** bisect_right(self.steps, step)


@dataclass(frozen=True, eq=False)
class WsodData:
    """Images with tags and proposals. Images without the one or the other teach nothing and are left out.

    Whoever made the proposals has read every image, so an image that cannot be read has none and is left out too.

    Attributes:
        keys: n names that tell the images' contents apart.
        readers: n functions that return (H, W, 3) uint8 RGB.
        tags: (n, C) bool.
        proposals: n arrays (R, 4) float32.
    """

    keys: Sequence[str]
    readers: Sequence[Callable[[], NDArray[np.uint8]]]
    tags: NDArray[np.bool_]
    proposals: Sequence[NDArray[np.float32]]

    def __post_init__(self) -> None:
        lengths = {len(self.keys), len(self.readers), len(self.tags), len(self.proposals)}
        if len(lengths) != 1:
            raise ValueError(f"keys, readers, tags and proposals of different lengths: {sorted(lengths)}")

    @cached_property
    def usable(self) -> NDArray[np.int64]:
        """(m,) indices of images with tags and proposals."""
        return np.flatnonzero(self.tags.any(1) & self._proposed)

    @cached_property
    def skipped(self) -> dict[str, list[int]]:
        """{reason: indices of the images that are left out for it}; images without both count as untagged."""
        tagged = self.tags.any(1)
        return {
            "no tags": np.flatnonzero(~tagged).tolist(),
            "no proposals": np.flatnonzero(tagged & ~self._proposed).tolist(),
        }

    @cached_property
    def digest(self) -> str:
        """Hex digest of keys, tags and proposals."""
        digest = hashlib.sha256(json.dumps(list(self.keys)).encode())
        digest.update(np.packbits(self.tags).tobytes())
        for boxes in self.proposals:
            digest.update(len(boxes).to_bytes(8, "little") + np.ascontiguousarray(boxes, np.float32).tobytes())
        return digest.hexdigest()

    @property
    def _proposed(self) -> NDArray[np.bool_]:
        return np.array([len(boxes) > 0 for boxes in self.proposals], bool)


class WsodBatch(NamedTuple):
    """Views of an update.

    Attributes:
        images: B tensors (3, h, w) uint8 RGB.
        boxes: B tensors (R, 4) float32 in pixels of the views.
        tags: (B, C) bool.
    """

    images: list[Tensor]
    boxes: list[Tensor]
    tags: Tensor


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
        for step, batch in enumerate(_batches(data, training, done), done):
            losses = run.update(step, batch)
            done = step + 1
            if done % LOG_EVERY == 0 or done in (1, total):
                run.log(done, losses)
            if done % training.save_every == 0 and done < total:
                run.save(done)
            tell(done, total)
    run.finish()


def load_batch(data: WsodData, step: int, training: WsodTraining) -> WsodBatch:
    """The views of update ``step``: shuffled epochs of the usable images, incomplete batches left out."""
    size = min(training.batch, len(data.usable))
    epoch, place = divmod(step, len(data.usable) // size)
    order = _order(len(data.usable), training.seed, epoch)[place * size : (place + 1) * size]
    chosen = data.usable[order]
    rng = np.random.default_rng([training.seed, step])
    views = [
        roi_view(
            data.readers[index](),
            data.proposals[index],
            int(rng.choice(training.sizes)),
            training.max_size,
            mirrored=bool(rng.random() < training.flip),
        )
        for index in chosen
    ]
    return WsodBatch([image for image, _ in views], [boxes for _, boxes in views], torch.from_numpy(data.tags[chosen]))


def load_detector(path: Path) -> WsodDetector:
    """The detector that a training stored, in eval mode on the CPU; nothing is fetched.

    Raises:
        UserError: the file is missing, damaged, or of another kind.
    """
    try:
        with safetensors.safe_open(path, "pt") as stored:
            about = json.loads((stored.metadata() or {})["about"])
            if about["format"] != FORMAT:
                raise UserError(f"{path} has format {about['format']!r}, not {FORMAT!r}; train the detector again.")
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
        stated: dict[str, Any] = about["settings"]
        if stated["drop_block"] is not None:
            stated["drop_block"] = DropBlockSettings(**stated["drop_block"])
        settings = WsodSettings(**{**stated, "branch_weights": tuple(stated["branch_weights"])})
        detector = rebuild_detector(settings, int(about["classes"]))
        detector.load_state_dict(tensors)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
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
        pixels = detector.prepare(batch.images)
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
        self._write_log()
        tensors = {f"weights.{name}": value for name, value in self.detector.state_dict().items()}
        for optimizer, adam in self.optimizers.items():
            for index, state in adam.state_dict()["state"].items():
                tensors |= {f"{optimizer}.{index}.{name}": value for name, value in state.items()}
        about = {"step": step, "data": self.data, "training": self.files.identity}
        _write_tensors(self.files.checkpoint, tensors, about)

    def resume(self) -> int:
        """Put the last checkpoint of this training into place: updates done."""
        try:
            with safetensors.safe_open(self.files.checkpoint, "pt") as stored:
                about = json.loads((stored.metadata() or {})["about"])
                if (about["data"], about["training"]) != (self.data, self.files.identity):
                    return 0
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
        except (OSError, KeyError, ValueError, safetensors.SafetensorError):
            return 0
        self.detector.load_state_dict(_below(tensors, "weights."))
        for optimizer, adam in self.optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in _below(tensors, f"{optimizer}.").items():
                index, name = key.split(".")
                state.setdefault(int(index), {})[name] = value
            adam.load_state_dict({"state": state, "param_groups": adam.state_dict()["param_groups"]})
        done, log = int(about["step"]), self.files.log
        rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
        self.rows = [row for row in rows if row["step"] <= done]
        return done

    def finish(self) -> None:
        """Store the detector with all that is needed to build it anew."""
        self._write_log()
        detector = self.detector.eval()
        about = {
            "format": FORMAT,
            "settings": asdict(detector.settings),
            "classes": detector.classes,
            "training": self.files.identity,
            "data": self.data,
        }
        _write_tensors(self.files.detector, detector.state_dict(), about)
        self.files.checkpoint.unlink(missing_ok=True)

    def _write_log(self) -> None:
        write_atomic(self.files.log, "".join(json.dumps(row) + "\n" for row in self.rows))


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


def _batches(data: WsodData, training: WsodTraining, first: int) -> Iterator[WsodBatch]:
    """Batches of the updates from ``first`` on, a few read ahead of the one that is used."""
    with ThreadPoolExecutor(training.workers) as pool:
        ahead: deque[Future[WsodBatch]] = deque()
        try:
            for step in range(first, training.iterations):
                ahead.append(pool.submit(load_batch, data, step, training))
                if len(ahead) > training.workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for batch in ahead:
                batch.cancel()


@lru_cache(maxsize=4)
def _order(images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return epoch_order(images, seed=seed, epoch=epoch).numpy()


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _write_tensors(path: Path, state: dict[str, Tensor], about: dict[str, Any]) -> None:
    """The library writes several entries of metadata in random order; one makes the same bytes every time."""
    plain = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    write_atomic(path, safetensors.torch.save(plain, {"about": json.dumps(about)}))
