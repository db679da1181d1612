"""The settings of WPS-SAM with a fine-tuned image encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weakly.errors import UserError
from weakly.methods.wps.settings import PRESETS as WPS_PRESETS
from weakly.methods.wps.settings import WpsSettings


@dataclass(frozen=True)
class FineTunedSettings(WpsSettings):
    """The ``settings:`` section of a recipe: those of WPS-SAM and two for the encoder.

    Attributes:
        encoder_lr: peak learning rate of the image encoder; the paper states none. Its schedule is that of the
            prompter, whose peak is ``optimisation.lr``.
        checkpointing: keep only what enters the encoder's blocks and compute what is inside them again in the backward
            pass: less memory, more time.
    """

    encoder_lr: float = 1e-5
    checkpointing: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompter != "queries":
            raise UserError(
                f"settings.prompter is {self.prompter}; a fine-tuned encoder has queries behind it, set that."
            )
        if self.encoder_lr <= 0:
            raise UserError(
                f"settings.encoder_lr is {self.encoder_lr}; give a number above 0, or method: wps for a frozen encoder."
            )


PRESETS: Mapping[str, Mapping[str, Any]] = {name: WPS_PRESETS[name] for name in ("default", "paper")}
"""Those of WPS-SAM but for ``official``: the released code fine-tunes nothing."""
