"""
`link`: the dtype of a field that holds handles of a named cache.

The name is metadata of the dtype, which NumPy hands on; `plain` takes it off.
"""

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
    drops it with a warning, and NumPy before 2.1 does not load what it wrote: save a view of the dtype that `plain` returns.
    `numpy.dtype.descr` writes it in a form that NumPy does not read, and two dtypes that differ only in it are equal.  Numba
    sees a plain int64.

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


def plain(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """
    Return a dtype without the names of caches in its links, for `numpy.save` and others that take no metadata.

    Parameters
    ----------
    dtype : numpy.dtype or class
        Of a record, of a field, or a class that `record` made.

    Returns
    -------
    numpy.dtype
        An equal dtype: fields, offsets, alignment, titles, byte orders and other metadata are the same.

    Raises
    ------
    LayoutError
        If it is no dtype.

    Examples
    --------
    >>> import io, numpy as np, jitslab
    >>> node = np.dtype([("value", "f8"), ("next", jitslab.link("nodes"))])
    >>> jitslab.links_of(jitslab.plain(node))
    {}
    >>> file = io.BytesIO()
    >>> np.save(file, np.zeros(3, node).view(jitslab.plain(node)))
    """
    try:
        given: np.dtype[Any] = np.dtype(dtype)
    except MemoryError:
        raise
    except Exception as error:  # of a class with a dtype of its own, whatever that raises
        raise LayoutError(f"not a dtype: {error}") from error
    return without_links(given)


def without_links(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype without links; the dtype itself if it has none."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        bare = without_links(base)
        return dtype if bare is base else np.dtype((bare, shape))
    metadata = {key: value for key, value in (dtype.metadata or {}).items() if key != LINK}
    if dtype.names is None or dtype.fields is None:
        return dtype if LINK not in (dtype.metadata or {}) else with_metadata(np.dtype(dtype.str), metadata)
    fields = [dtype.fields[name] for name in dtype.names]
    formats = [without_links(field[0]) for field in fields]
    if all(bare is field[0] for bare, field in zip(formats, fields, strict=True)):
        return dtype
    parts: Any = {
        "names": dtype.names,
        "formats": formats,
        "offsets": [field[1] for field in fields],
        "titles": [field[2] if len(field) > 2 else None for field in fields],
        "itemsize": dtype.itemsize,
    }
    bare = with_metadata(np.dtype(parts, align=dtype.isalignedstruct), metadata)
    return bare if dtype.type is np.void else np.dtype((dtype.type, bare))


def with_metadata(dtype: np.dtype[Any], metadata: dict[Any, Any]) -> np.dtype[Any]:
    """Return a dtype with metadata."""
    return np.dtype(dtype, align=dtype.isalignedstruct, metadata=metadata) if metadata else dtype
