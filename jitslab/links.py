"""`link`: the dtype of a field that holds handles of a named cache; the name is metadata of the dtype, which NumPy hands on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ._validate import check_dtype
from .errors import LayoutError, shown

LINK = "jitslab.link"  # key in the metadata of a link's dtype


def link(cache: str) -> np.dtype[np.int64]:
    """
    Return the dtype of a field that holds handles of a cache, or NULL: an int64 that remembers the name.

    Parameters
    ----------
    cache : str
        Name of the cache that the handles are of; it need not exist yet.

    Raises
    ------
    LayoutError
        If the name is no string, or empty.

    Notes
    -----
    The name is metadata of the dtype: arrays, copies, other byte orders, selections of fields and pickles keep it.  `numpy.save`
    drops it with a warning, and NumPy before 2.1 does not load what it wrote; `numpy.dtype.descr` writes it in a form that NumPy
    does not read, and two dtypes that differ only in it are equal.  Numba sees a plain int64.

    Examples
    --------
    >>> import numpy as np, jitslab
    >>> node = np.dtype([("value", "f8"), ("next", jitslab.link("nodes"))])
    >>> node
    dtype([('value', '<f8'), ('next', '<i8')])
    >>> jitslab.links_of(node)
    {('next',): 'nodes'}
    """
    if not isinstance(cache, str) or not cache:
        raise LayoutError(f"a link names a cache by a string that is not empty, got {shown(cache)}")
    return np.dtype(np.int64, metadata={LINK: cache})


def links_of(dtype: npt.DTypeLike) -> dict[tuple[str, ...], str]:
    """
    Return the links in a record: the path of each link field, and the name of its cache.

    Parameters
    ----------
    dtype : numpy.dtype or class
        Of a record, or a class that `record` made.

    Returns
    -------
    dict of tuple of str to str
        Names from the record down to the field; fields of nested records, and sub-arrays of either, are among them.

    Examples
    --------
    >>> import numpy as np, jitslab
    >>> pair = np.dtype([("both", jitslab.link("nodes"), (2,))])
    >>> jitslab.links_of(np.dtype([("id", "i4"), ("pairs", pair, (8,))]))
    {('pairs', 'both'): 'nodes'}
    """
    return dict(links_within(check_dtype(dtype), ()))


def links_within(dtype: np.dtype[Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the links of a field and of all within."""
    dtype = dtype.base
    if dtype.names is None:
        if dtype.metadata and LINK in dtype.metadata:
            yield path, dtype.metadata[LINK]
    else:
        for name in dtype.names:
            yield from links_within(dtype[name], (*path, name))
