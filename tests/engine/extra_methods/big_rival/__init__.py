"""A baseline of the tiny method: the same student under another name, with settings of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from weakly.methods.tiny import TinyMethod, TinySettings


@dataclass(frozen=True)
class RivalSettings(TinySettings):
    """Settings of the rival; the tiny method knows no ``temper``."""

    temper: float = 1.0


class RivalMethod(TinyMethod):
    """The verbs."""

    name: ClassVar[str] = "big-rival"
    Settings: ClassVar[type[Any]] = RivalSettings
    presets: ClassVar[dict[str, Any]] = {"paper": {"optimisation": {"epochs": 50}, "settings": {"temper": 3.0}}}


METHOD = RivalMethod()
