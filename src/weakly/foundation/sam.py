"""Every SAM 1 checkpoint behind :class:`~weakly.foundation.promptable.PromptableSegmenter`.

One adapter serves the bundled model, Hugging Face checkpoints (hub id or local folder) and the original ``.pth``
files: all of them become a ``transformers.SamModel``, whose arithmetic this adapter only batches differently, or, for
automatic masks, orders differently (:mod:`~weakly.foundation.sam_decoding`).
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import SamModel

from weakly.errors import UserError
from weakly.foundation.promptable import Pad, PromptableSegmenter, Wanted
from weakly.foundation.sam_checkpoint import load_original, load_small
from weakly.foundation.sam_decoding import decode_wanted

BUNDLED = Path(__file__).parent / "bundled" / "sam"


class SamSegmenter(PromptableSegmenter):
    """A frozen ``SamModel``.

    Args:
        model: any ``SamModel``; its ``vision_encoder`` may be another module with the same interface.
        name: what the user called it.
        pad: how images are padded to the square.
        chunk: prompts decoded at once. One prompt at SAM's own size holds about 40 MiB of activations
            (embedding, upscaled embedding and attention keys in fp32), so 64 prompts stay under 3 GiB.
    """

    def __init__(self, model: SamModel, name: str, pad: Pad = "sam", chunk: int = 64) -> None:
        super().__init__()
        self.model = model.float()
        self.name = name
        self.pad = pad
        self.chunk = chunk
        prompt = model.config.prompt_encoder_config
        grid = prompt.image_size // prompt.patch_size
        self.side = int(prompt.image_size)
        self.embedding_shape = (int(prompt.hidden_size), grid, grid)
        self.token_width = int(prompt.hidden_size)
        self.freeze()

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over every named weight (fp32 bytes), the input side and the padding."""
        digest = hashlib.sha256(f"sam|{self.side}|{self.pad}".encode())
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) float32 to embeddings (B, C, h, w)."""
        embedding: Tensor = self.model.vision_encoder(pixels.to(self.device)).last_hidden_state
        return embedding.float().contiguous()

    @torch.no_grad()
    def box_tokens(self, boxes: Tensor) -> Tensor:
        """(N, 4) frame boxes to (N, 2, D): one token per corner, ``PE(corner) + L2`` and ``+ L3``."""
        if len(boxes) == 0:
            return torch.zeros(0, 2, self.token_width, device=self.device)
        boxes = boxes.to(self.device, torch.float32)
        sparse, _ = self.model.prompt_encoder(None, None, boxes[:, None], None)
        return sparse[:, 0]

    @torch.no_grad()
    def point_tokens(self, points: Tensor, boxes: Tensor | None = None) -> Tensor:
        """(N, 2) foreground points to (N, 2, D): ``PE(point) + L1`` and the padding token; (N, 3, D) with boxes."""
        if len(points) == 0:
            return torch.zeros(0, 2 if boxes is None else 3, self.token_width, device=self.device)
        points = points.to(self.device, torch.float32)[:, None, None]
        labels = torch.ones(points.shape[:3], device=self.device)
        corners = None if boxes is None else boxes.to(self.device, torch.float32)[:, None]
        sparse, _ = self.model.prompt_encoder(points, labels, corners, None)
        return sparse[:, 0]

    def decode(
        self, embeddings: Tensor, tokens: Tensor, image_index: Tensor, *, multimask: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Mask logits (N, K, 4h, 4w) and predicted IoU (N, K) of a ragged batch of prompts, ``chunk`` at a time."""
        count = 3 if multimask else 1
        if len(tokens) == 0:
            _, height, width = self.embedding_shape
            return tokens.new_zeros(0, count, 4 * height, 4 * width), tokens.new_zeros(0, count)
        position = self.model.get_image_wide_positional_embeddings()
        dense = self.model.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        masks, scores = [], []
        for part, index in zip(tokens.split(self.chunk), image_index.split(self.chunk), strict=True):
            logits, iou = self.model.mask_decoder(
                image_embeddings=embeddings[index],
                image_positional_embeddings=position.expand(len(part), -1, -1, -1),
                sparse_prompt_embeddings=part[:, None],
                dense_prompt_embeddings=dense,
                multimask_output=multimask,
            )
            masks.append(logits[:, 0])
            scores.append(iou[:, 0])
        return torch.cat(masks), torch.cat(scores)

    @torch.no_grad()
    def decode_wanted(self, embedding: Tensor, tokens: Tensor, wanted: Wanted) -> tuple[Tensor, Tensor, Tensor]:
        """Indices (R,) of the wanted masks, their logits (R, 4h, 4w) and all predicted IoU (N, 3); only those are made.

        Same answers as :meth:`decode`, up to rounding, several times faster. Pixels of ``chunk`` prompts at most are
        held at once, on a CPU of as many as fit into its cache.
        """
        if len(tokens) == 0:
            return super().decode_wanted(embedding, tokens, wanted)
        image = embedding[0] + self.model.prompt_encoder.no_mask_embed.weight.view(-1, 1, 1)
        position = self.model.get_image_wide_positional_embeddings()[0]
        return decode_wanted(self.model.mask_decoder, image, position, tokens, wanted, self.chunk)


def load_segmenter(name: str, *, pad: Pad = "sam", device: str = "cpu") -> SamSegmenter:
    """A frozen SAM by name.

    Args:
        name: ``"bundled"``, a folder in Hugging Face or bundled form, an original ``.pth`` file, or a hub id such
            as ``"facebook/sam-vit-base"`` (the only form that uses the network).
        pad: how images are padded to the square.
        device: torch device.

    Raises:
        UserError: there is no such file or model, or it is no SAM.
    """
    return SamSegmenter(_load_model(name), name, pad).to(device)


def _load_model(name: str) -> SamModel:
    path = BUNDLED if name == "bundled" else Path(name)
    if (path / "small_sam.json").is_file():
        return load_small(path)
    if path.suffix in {".pth", ".pt"}:
        return load_original(path)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"{path} has no config.json; give a folder saved with save_pretrained, or a .pth file.")
    if not path.is_dir() and (path.is_absolute() or name.startswith(".") or name == "bundled"):
        raise UserError(f"There is no segmenter at {path}; give a folder, a .pth file, a hub id or 'bundled'.")
    try:
        model, loading = SamModel.from_pretrained(
            str(path) if path.is_dir() else name, weights_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".:")
        raise UserError(f"Segmenter {name!r} could not be loaded ({reason}); check the name or the folder.") from error
    absent = sorted(loading["missing_keys"]) + sorted(key for key, *_ in loading["mismatched_keys"])
    if absent:  # the library would go on with random weights
        raise UserError(f"Segmenter {name!r} is no SAM: its weights lack {absent[0]}; give a SAM 1 checkpoint.")
    return model
