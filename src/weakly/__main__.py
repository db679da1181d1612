"""``python -m weakly``."""

from weakly.cli import entry_point

entry_point()
