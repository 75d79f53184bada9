"""
Why the library is behind where it misses a target: which rows, the reason found, and what was tried to close the gap.

Below `sections`, which puts it beside the figures.  It stands in reasons.json.  "rows" are suite, operation, figure and key, the
first three as patterns of `fnmatch`: the first row that a missed figure matches names its reason.  A reason says what profiling
found, and of at least two attempts what each measured.  Keys are words of links.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

PATH = Path(__file__).with_name("reasons.json")


class Reason(NamedTuple):
    """Why, and what each attempt to close the gap measured."""

    why: str
    tried: list[str]


_read = json.loads(PATH.read_text())
ROWS: list[tuple[str, str, str, str]] = [tuple(row) for row in _read["rows"]]
REASONS = {key: Reason(**reason) for key, reason in _read["reasons"].items()}


def key_of(suite: str, operation: str, figure: str) -> str | None:
    """Return the key of the reason that a missed figure has; None if none is known."""
    for of_suite, of_operation, of_figure, key in ROWS:
        if suite == of_suite and fnmatchcase(operation, of_operation) and fnmatchcase(figure, of_figure):
            return key
    return None
