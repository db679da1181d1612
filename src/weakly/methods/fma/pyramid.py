"""A student on the frozen segmenter's embeddings, in the place of FMA-WSSS's networks on pixels (ours).

The seeds' masks come from a frozen segmenter that has learned what images look like; a network on pixels learns that
again from the seeds alone, for which a thousand images are few. Symbols: B images, (K, h, w) what is looked at of an
embedding, C categories and background with index C.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from weakly.errors import UserError
from weakly.methods.embedding import EmbeddingSource
from weakly.methods.resnet import group_norm
from weakly.methods.semantic_network import SemanticNetwork, cross_entropy, resize
from weakly.methods.simple_pyramid import SimplePyramid


@dataclass(frozen=True)
class PyramidSettings:
    """A pyramid on an embedding, whose maps are summed.

    Attributes:
        width: channels of the maps; a multiple of 32.
        scales: of the maps' sides to those of the embedding, finest first: powers of two. Scores have the finest.
        dropout: of channels, before the scores.
    """

    width: int = 128
    scales: tuple[float, ...] = (4, 2, 1, 0.5, 0.25)
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.width < 32 or self.width % 32:
            raise UserError(f"pyramid.width is {self.width}; give a multiple of 32.")
        if not self.scales or not _descending_powers(self.scales) or self.scales[0] < 1:
            raise UserError(
                f"pyramid.scales is {list(self.scales)}; give descending powers of two from 8 to 1/16, the first at"
                " least 1."
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"pyramid.dropout is {self.dropout}; give a share from 0 to below 1.")

    def cells(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(f * h, f * w), the scores of a grid (h, w)."""
        height, width = (int(side * self.scales[0]) for side in grid)
        return height, width


class PyramidNetwork(SemanticNetwork):
    """A simple feature pyramid on the embedding of a whole image, summed at its finest scale f.

    What other networks call pixels are embeddings (B, K, h, w) here, and their labels are (B, f * h, f * w), over the
    segmenter's frame.

    Args:
        settings: its sizes.
        classes: C.
        source: whose embeddings it looks at.
    """

    stride: ClassVar[int] = 1
    backbone: ClassVar[str] = "pyramid."
    backbone_lr: float = 1.0

    def __init__(self, settings: PyramidSettings, classes: int, source: EmbeddingSource) -> None:
        super().__init__()
        self.settings, self.source = settings, source
        self.pyramid = SimplePyramid(source.channels, settings.width, settings.scales)
        self.head = nn.Sequential(
            nn.GELU(),
            nn.Conv2d(settings.width, settings.width, 3, padding=1, bias=False),
            group_norm(settings.width),
            nn.GELU(),
            nn.Dropout2d(settings.dropout),
            nn.Conv2d(settings.width, classes + 1, 1),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeddings (B, K, h, w) to logits (B, C + 1, f * h, f * w) over the frame."""
        return self.scores(pixels)

    def scores(self, pixels: Tensor) -> Tensor:
        """:meth:`forward`."""
        finest, *others = self.pyramid(pixels).values()
        logits: Tensor = self.head(finest + sum(resize(level, finest.shape[-2:]) for level in others))
        return logits

    def padded_loss(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """``cross_entropy``: the mean over the labelled cells."""
        return {"cross_entropy": cross_entropy(self.scores(pixels), labels)}

    def architecture(self) -> dict[str, Any]:
        """Settings, and whose embeddings they are for."""
        return {"kind": "pyramid", "settings": asdict(self.settings), "source": asdict(self.source)}


def _descending_powers(scales: tuple[float, ...]) -> bool:
    powers = [2.0**n for n in range(3, -5, -1)]
    return list(scales) == [power for power in powers if power in scales]
