"""Where the newest version of every block stands in the journal: what a checkpoint writes, and what a rollback reads."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .frames import BLOCK

VERSION = np.dtype(
    [
        ("cache", "i8"),  # id of the cache
        ("file", "i8"),  # 0: words, 1: records
        ("offset", "i8"),  # in the file
        ("place", "i8"),  # in the journal
        ("n_bytes", "i8"),
    ]
)


def newest(runs: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
    """
    Return the newest version of every block.

    Parameters
    ----------
    runs : ndarray of int64, shape (n, 5)
        Of each run in the journal the cache's id, the file, the offset there, the place in the journal, the bytes.

    Returns
    -------
    ndarray of VERSION
        Runs of blocks that are neighbours in their file and in the journal, sorted by cache, file and offset.

    Examples
    --------
    >>> newest(np.array([[1, 0, 0, 8192, 12288], [1, 0, 4096, 24576, 4096]]))[["offset", "place", "n_bytes"]].tolist()
    [(0, 8192, 4096), (4096, 24576, 4096), (8192, 16384, 4096)]
    """
    if not len(runs):
        return np.empty(0, VERSION)
    sizes = runs[:, 4] // BLOCK
    within = np.arange(sizes.sum()) - np.repeat(places_of(sizes), sizes)  # number of a block in its run
    blocks = np.empty(len(within), VERSION)
    blocks["n_bytes"] = BLOCK
    for name, values in (("cache", runs[:, 0]), ("file", runs[:, 1])):
        blocks[name] = np.repeat(values, sizes)
    for name, values in (("offset", runs[:, 2]), ("place", runs[:, 3])):
        blocks[name] = np.repeat(values, sizes) + within * BLOCK
    blocks = blocks[np.lexsort((blocks["place"], blocks["offset"], blocks["file"], blocks["cache"]))]
    is_last = np.append((blocks["offset"][1:] != blocks["offset"][:-1]) | is_other_file(blocks), True)
    blocks = blocks[is_last]
    starts = np.ones(len(blocks), np.bool_)
    gap = (np.diff(blocks["offset"]) != BLOCK) | (np.diff(blocks["place"]) != BLOCK)
    starts[1:] = gap | is_other_file(blocks)
    first = np.flatnonzero(starts)
    versions: npt.NDArray[np.void] = blocks[first]
    versions["n_bytes"] = np.diff(np.append(first, len(blocks))) * BLOCK
    return versions


def places_of(sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return where each piece begins, if they lie one behind the other."""
    return np.asarray(np.cumsum(sizes) - sizes, np.int64)


def is_other_file(blocks: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """Whether each block but the first is of another file than the one before."""
    return np.asarray(np.diff(blocks["cache"] << 1 | blocks["file"]) != 0, np.bool_)
