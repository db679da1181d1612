"""The two ways a command can fail on purpose.

Every user error is one sentence that names the file, the index and the remedy; the command line prints it
without a traceback and leaves with the exit code the class carries (DESIGN section 6).
"""

from __future__ import annotations


class WeaklyError(Exception):
    """A failure with a sentence for the user."""

    exit_code = 1


class UserError(WeaklyError):
    """Wrong use or wrong input: the sentence says what, where and what to do."""

    exit_code = 2
