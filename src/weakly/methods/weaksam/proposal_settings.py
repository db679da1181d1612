"""The settings of WeakSAM's proposals (weaksam, sections 2.3 and 12)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from weakly.errors import UserError
from weakly.foundation.mask_settings import LevelOf

Joint = Literal["coarse", "fine"]
Rank = Literal["iou", "votes"]


@dataclass(frozen=True)
class GridSettings:
    """The grid of points over the whole image; the defaults are WeakSAM's.

    A segmenter whose predicted IoU tells little, such as the bundled one, still finds a thing from wherever it is
    asked: ``rank: votes`` with both tests at 0 (ours).

    Attributes:
        side: points along each side; 32 is 1,024 prompts. 0: no grid.
        pred_iou: predicted IoU must exceed this.
        stability: least stability, the IoU of the mask at logits over +offset and over -offset, at full resolution.
        stability_offset: in logits.
        rank: which boxes come first, and suppress others: those of masks with the higher predicted ``iou``, or those
            with more ``votes``, the sum of the IoU of all boxes of the grid that agree with them.
        vote_iou: least box IoU at which boxes agree.
        border: votes are divided by 1 + ``border`` times the image borders a box touches; what leaves the image on
            several sides is mostly background. 0: they are not.
        nms: box IoU over which the box of lower rank goes.
        most: boxes of the grid that are kept, at most, the first ones; null: all.
    """

    side: int = 32
    pred_iou: float = 0.3
    stability: float = 0.3
    stability_offset: float = 1.0
    rank: Rank = "iou"
    vote_iou: float = 0.5
    border: float = 0.0
    nms: float = 0.3
    most: int | None = None

    def __post_init__(self) -> None:
        _require(self.rank in {"iou", "votes"}, "grid.rank", self.rank, "iou or votes")
        _require(self.most is None or self.most >= 1, "grid.most", self.most, "at least 1, or null")
        _require(self.side >= 0, "grid.side", self.side, "a whole number of at least 0")
        for name in ("stability_offset", "border"):
            _require(getattr(self, name) >= 0, f"grid.{name}", getattr(self, name), "a number of at least 0")
        for name in ("pred_iou", "stability", "vote_iou", "nms"):
            _require(0 <= getattr(self, name) <= 1, f"grid.{name}", getattr(self, name), "a fraction in [0, 1]")


@dataclass(frozen=True)
class ProposalSettings:
    """How points become proposals; the defaults are WeakSAM's.

    Attributes:
        keep_masks: which of the three masks of a prompt are kept, 0 the smallest; for points, not for the grid.
        level_of: what ``keep_masks`` counts. ``output``: the decoder's outputs, as in SAM; ``area``: the rank of the
            areas of a prompt's masks, for a segmenter whose outputs have no order, such as the bundled one.
        class_joint: sources whose points of one class also make one prompt together.
        cross_nms: box IoU with an earlier cross proposal over which a later one goes.
        grid: of points over the image.
        prompts_per_batch: prompts decoded at once; changes memory and speed alone.
    """

    keep_masks: tuple[int, ...] = (1, 2)
    level_of: LevelOf = "output"
    class_joint: tuple[Joint, ...] = ("coarse", "fine")
    cross_nms: float = 0.9
    grid: GridSettings = field(default_factory=GridSettings)
    prompts_per_batch: int = 64

    def __post_init__(self) -> None:
        kept, joint = list(self.keep_masks), list(self.class_joint)
        choices = 0 < len(set(kept)) == len(kept) and set(kept) <= {0, 1, 2}
        _require(choices, "keep_masks", kept, "some of 0, 1 and 2")
        _require(self.level_of in {"output", "area"}, "level_of", self.level_of, "output or area")
        _require(set(joint) <= {"coarse", "fine"}, "class_joint", joint, "some of coarse and fine, or none")
        _require(0 <= self.cross_nms <= 1, "cross_nms", self.cross_nms, "a fraction in [0, 1]")
        _require(self.prompts_per_batch >= 1, "prompts_per_batch", self.prompts_per_batch, "at least 1")


@dataclass(frozen=True)
class LoadSettings:
    """What a detector sees of the proposals (weaksam, section 2.3); the defaults are those for PASCAL VOC.

    Attributes:
        dedup: of equal boxes the first stays.
        clip: boxes end with the image.
        min_side: boxes with a side under this many pixels go; WeakSAM has 20 for VOC and 2 for COCO.
    """

    dedup: bool = True
    clip: bool = True
    min_side: float = 20.0

    def __post_init__(self) -> None:
        _require(self.min_side >= 0, "load.min_side", self.min_side, "a number of at least 0")


def _require(condition: bool, name: str, value: object, wanted: str) -> None:
    if not condition:
        raise UserError(f"The proposal setting {name} is {value!r}; give {wanted}.")
