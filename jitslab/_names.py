"""Names of open caches and allocators: read-only mappings, and the lock under which names are given."""

from __future__ import annotations

import difflib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from .errors import CapacityError, DuplicateNameError, UnknownNameError, shown

T = TypeVar("T")
U = TypeVar("U")

MOST_PROPOSED = 3  # names that an error proposes


class Names(Mapping[str, T], Generic[T]):
    """
    Open caches or allocators by name: read-only and live.

    Looking up an unknown name raises `UnknownNameError`, which proposes names near it.

    Parameters
    ----------
    what : str
        Kind of the values, for messages.
    find : callable
        Returns the value of a name, or None.
    listing : callable
        Returns all values by name.
    """

    def __init__(self, what: str, find: Callable[[str], T | None], listing: Callable[[], dict[str, T]]) -> None:
        self._what, self._find, self._listing = what, find, listing

    def __getitem__(self, name: str) -> T:
        """Return the value of a name."""
        found = self._find(name) if isinstance(name, str) else None
        if found is None:
            raise UnknownNameError(f"there is no {self._what} {shown(name)}{self._near(name)}")
        return found

    def __contains__(self, name: object) -> bool:
        """Whether a value has this name."""
        return isinstance(name, str) and self._find(name) is not None

    def get(self, name: str, default: T | U | None = None) -> T | U | None:  # type: ignore[override]  # the overloads in one
        """Return the value of a name, or the default."""
        found = self._find(name) if isinstance(name, str) else None
        return default if found is None else found

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of now."""
        return iter(self._listing())

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._listing())

    def __repr__(self) -> str:
        """Show the names."""
        return f"<{self._what}s: {', '.join(map(repr, self)) or 'none'}>"

    def _near(self, name: Any) -> str:
        """Return the end of a message: names like this one."""
        if not isinstance(name, str):
            return ""
        numbered = [other for other in self if other.startswith(f"{name}#")]  # several have this name
        near = numbered[:MOST_PROPOSED] or difflib.get_close_matches(name, self, MOST_PROPOSED)
        return f"; there is {' and '.join(map(repr, near))}" if near else ""


def need_name(what: str, name: Any) -> None:
    """Raise unless `name` is a string that is not empty."""
    if not isinstance(name, str) or not name:
        raise CapacityError(f"{what} is named by a string that is not empty, got {shown(name)}")


def check_name(what: str, name: Any, taken: Mapping[str, Any]) -> None:
    """Raise unless something new can have the name."""
    need_name(what, name)
    if "#" in name or not name.isprintable() or name != name.strip():
        raise CapacityError(f"the name of {what} is printable, without '#' and without blanks around it, got {name!r}")
    if name in taken:
        raise DuplicateNameError(f"there is {what} {name!r} already")


_lock = threading.RLock()  # a finaliser may come back here


def names_lock() -> threading.RLock:
    """Return the one lock under which names are given; a `with` statement leaves the lock that it entered."""
    return _lock


def _renew_lock() -> None:
    """Replace the lock in a child of fork, where the thread that held it does not run."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
