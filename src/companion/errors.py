"""The one exception that a reader is meant to see."""

from __future__ import annotations


class CompanionError(Exception):
    """Something the user can put right.

    The message is one sentence that says what is wrong and what to do. The command line
    prints it without a traceback and exits with code 2.
    """
