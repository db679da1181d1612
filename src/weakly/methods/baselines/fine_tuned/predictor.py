"""The inference side: images in, part masks at their original size out, without a prompt."""

from __future__ import annotations

from typing import ClassVar

from weakly.methods.wps.predictor import WpsPredictor


class FineTunedPredictor(WpsPredictor):
    """WPS-SAM's predictor in front of a segmenter whose encoder is the student's."""

    method: ClassVar[str] = "fine-tuned"
