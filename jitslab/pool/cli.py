"""The commands for pools: ``jitslab info``, ``jitslab check`` and ``jitslab dump``."""

from __future__ import annotations

from typing import Any


def add_to(commands: Any) -> None:
    """Add the commands to the command line."""
