"""Sixteen captioned pictures of 64 pixels, in shards of sixteen."""

from pathlib import Path

import pytest

from weakly.foundation.pretraining import captioned
from weakly.foundation.pretraining.captioned import CaptionedBank, render_captioned


def small_bank(folder: Path) -> CaptionedBank:
    """Drawn anew with the same seed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captioned, "CHUNK", 16)
        return render_captioned(folder, 16, seed=3, size=64)
