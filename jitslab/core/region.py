"""A range of addresses and its end."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..machine.compile import Entry
from ..machine.owner import owner


class Reservation:
    """
    A range of address space with an end, in one step: the process's registry forgets what is in it, and its memory goes.

    That is when its last array is gone.  NumPy sees it as an array of bytes, ``np.asarray(reservation)``, that keeps it alive.

    Parameters
    ----------
    words : ndarray of int64
        What `layout.RANGE` says, all zeros: it is there as soon as its address and its bytes stand in them.
    end : Entry
        Called with the address of `words`; it has to give the range back.
    kept
        What has to stay as long: memory that is used together with it.
    """

    __slots__ = ("_owner", "words")

    def __init__(self, words: npt.NDArray[np.int64], end: Entry, *kept: Any) -> None:
        self.words = words
        self._owner = owner(end, words, *kept)

    @property
    def address(self) -> int:
        """Of its first byte."""
        return int(self.words[1])

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """As NumPy asks for it: to be written to, though nothing may be usable yet."""
        return {"shape": (int(self.words[2]),), "typestr": "|u1", "data": (self.address, False), "version": 3}
