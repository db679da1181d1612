"""The inference side: regions ask in the place of queries; decoding and fusion are WPS-SAM's."""

from __future__ import annotations

from typing import ClassVar

from weakly.methods.wps.predictor import WpsPredictor


class AnchorPrompterPredictor(WpsPredictor):
    """WPS-SAM's predictor behind a prompter whose "queries" are the regions of an image, best first."""

    method: ClassVar[str] = "anchor-prompter"
