"""A prompter with anchors in the place of queries (WPS-SAM, Table B, "anchor-based CNN").

It is WPS-SAM with ``settings.prompter: regions`` and all else as the paper has it: regions answer tokens, as queries
do. ``preset: plus`` of WPS-SAM lets them answer boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from weakly.methods.tables import Tables
from weakly.methods.wps import WpsMethod
from weakly.methods.wps.settings import PRESETS as WPS_PRESETS
from weakly.methods.wps.settings import WpsSettings

REGIONS = {"prompter": "regions", "lambda_box": 1.0}


class AnchorPrompterMethod(WpsMethod):
    """WPS-SAM's verbs, with regions by default."""

    name: ClassVar[str] = "anchor-prompter"
    supervisions: ClassVar[tuple[str, ...]] = ("box", "point+box")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {**WPS_PRESETS[name], "settings": REGIONS} for name in ("default", "paper")
    }

    def tables(self, settings: WpsSettings) -> Tables:  # noqa: ARG002 - it is a row of WPS-SAM's
        """None of its own."""
        return Tables()


METHOD = AnchorPrompterMethod()
