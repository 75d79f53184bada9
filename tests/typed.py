"""What type checkers see of declared records; `test_declare` runs mypy over it, and runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt

import jitslab

if TYPE_CHECKING:
    from typing_extensions import assert_type
else:

    def assert_type(value, cls):
        """Return the value."""
        return value


@jitslab.record
class Point:
    """A nested record."""

    x: jitslab.f8
    y: jitslab.f8

    def norm(self) -> float:
        """Length of the vector."""
        return float((self.x**2 + self.y**2) ** 0.5)


@jitslab.record
class Node:
    """A record with a link, an array and a nested record."""

    value: jitslab.f8
    flags: jitslab.u1
    next: Annotated[int, jitslab.link("nodes")]
    data: Annotated[npt.NDArray[np.float32], ("f4", (3,))]
    at: Point


def use() -> float:
    """Allocate, write and read, as a user does."""
    nodes = jitslab.SlabCache("nodes", Node, capacity=10, init="zero")
    assert_type(nodes, jitslab.SlabCache[Node])
    guard = nodes.allocate()
    assert_type(guard, jitslab.SlabObjectGuard[Node])
    with guard as node:
        assert_type(node, Node)
        assert_type(node.value, float)
        assert_type(node.flags, int)
        assert_type(node.next, int)
        assert_type(node.data, npt.NDArray[np.float32])
        assert_type(node.at, Point)
        node.value = 1.5
        node.at.x, node.at.y = 3.0, 4.0
        node.value = "wrong"  # type: ignore[assignment]  # must be an error: an unused ignore is one
        node.wrong = 1.0  # type: ignore[attr-defined]  # likewise
    assert_type(guard.handle, int)
    return 0.0


def plain() -> Any:
    """Caches of a plain dtype give guards whose fields are Any."""
    cache = jitslab.SlabCache("plain", np.dtype([("x", "f8")]), capacity=10)
    with cache.allocate() as it:
        it.x = 1.0
        return it.x


def declare(cls: type) -> type:
    """Declare a class of another module."""
    return jitslab.record(cls)
