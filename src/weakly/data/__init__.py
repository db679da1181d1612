"""From disk to :class:`~weakly.data.dataset.Dataset`: one reader per format, and the checks."""
