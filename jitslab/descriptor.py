"""
The description of a record's dtype as objects of JSON: fields, titles, offsets, alignment, sub-arrays, byte orders and links.

A description is a stranger's until `rebuild_dtype` has looked at all of it; nothing in it is run or imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ._validate import check_dtype, is_own
from .errors import LayoutError, PoolVersionError, shown
from .links import LINK

MOST_FIELDS = 4096  # of a dtype, those of nested records among them
MOST_LEVELS = 16  # of records in records
MOST_DIMENSIONS = 32  # of a sub-array
MOST_ITEMSIZE = (1 << 31) - 1  # NumPy's own bound before version 2
Descriptor = dict[str, Any]
DESCRIPTOR_KEYS = {"itemsize", "aligned", "record", "fields"}
KINDS = "biufcmMSUV"
UNIT = "(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)"
PLAIN = re.compile(rf"[<>|]([biufcmMSUV])([0-9]{{1,10}})(?:/([0-9]{{1,4}})|\[(?:[1-9][0-9]{{0,9}})?{UNIT}\])?")
LINKS = ("<i8", ">i8")  # what a link can be


def describe(dtype: npt.DTypeLike) -> Descriptor:
    """
    Return a dtype of records as objects of JSON, from which `rebuild_dtype` makes it again.

    Parameters
    ----------
    dtype : numpy.dtype or class
        Of a record, or a class that `record` made.

    Returns
    -------
    dict
        Its ``fields`` are lists of name, title, offset, shape, link, and a dtype's `str` or the dict of a nested record.

    Raises
    ------
    LayoutError
        If a field is of a kind that means nothing in another process: Python objects, text of any length, a dtype that is not
        NumPy's own; if a title is no string; or if it is too large or too deep.

    Notes
    -----
    Two dtypes are one to a pool if their descriptions are equal.  Metadata but the name of a link is left out.  A long double has
    the bits of its mantissa behind its size: machines differ in them.

    Examples
    --------
    >>> import numpy as np, jitslab
    >>> from jitslab.descriptor import describe
    >>> describe(np.dtype([("value", "f8"), ("next", jitslab.link("nodes"))]))["fields"]
    [['value', None, 0, [], None, '<f8'], ['next', None, 8, [], 'nodes', '<i8']]
    """
    given = dtype if isinstance(dtype, np.dtype) and dtype.names is not None else check_dtype(dtype)
    described = description(given, 1, iter(range(MOST_FIELDS)))
    given = check_dtype(given)
    made = rebuild_dtype(described)
    if made != given:
        raise LayoutError(f"{shown(given)} would come back from a file as {shown(made)}")
    if made.alignment != given.alignment:
        raise LayoutError(
            f"a dtype of alignment {given.alignment} would come back from a file as one of {made.alignment};"
            " write all of its fields anew, as numpy.lib.recfunctions.repack_fields does"
        )
    return described


def rebuild_dtype(descriptor: Any) -> np.dtype[Any]:
    """
    Return the dtype that `describe` described.

    Parameters
    ----------
    descriptor : dict
        A stranger's, perhaps: all of it is checked.

    Raises
    ------
    LayoutError
        If no dtype of records has this description.
    PoolVersionError
        If it has long doubles of another machine.

    Examples
    --------
    >>> import numpy as np
    >>> from jitslab.descriptor import describe, rebuild_dtype
    >>> rebuild_dtype(describe(np.dtype([("x", ">f4", (3,)), ("when", "M8[ms]")], align=True)))
    dtype([('x', '>f4', (3,)), ('when', '<M8[ms]')], align=True)
    """
    dtype = check_dtype(rebuilt(descriptor, 1, iter(range(MOST_FIELDS))))
    if description(dtype, 1, iter(range(MOST_FIELDS))) != descriptor:
        raise LayoutError(f"{shown(descriptor)} describes another dtype than {shown(dtype)}, which was made of it")
    return dtype


def description(dtype: np.dtype[Any], level: int, numbers: Iterator[int]) -> Descriptor:
    """Return the description of a record; `numbers` has one for each field that there may still be."""
    check_level(level)
    if dtype.type not in (np.void, np.record):
        raise LayoutError(f"records of a file are numpy.void or numpy.record, got {dtype.type.__name__}")
    fields = []
    all_fields: Any = dtype.fields
    for name in dtype.names or ():
        check_number(numbers)
        field, offset, title = (*all_fields[name], None)[:3]
        base = field.base
        link = None if base.names is not None else (base.metadata or {}).get(LINK)
        try:
            content = plain_text(base) if base.names is None else description(base, level + 1, numbers)
        except LayoutError as error:
            raise LayoutError(f"field {shown(name)}: {error}") from None
        fields.append([name, title, offset, list(field.shape), link, content])
    return {"itemsize": dtype.itemsize, "aligned": dtype.isalignedstruct, "record": dtype.type is np.record, "fields": fields}


def rebuilt(descriptor: Any, level: int, numbers: Iterator[int]) -> np.dtype[Any]:
    """Return the dtype of a description, for which NumPy gets nothing that is out of bounds."""
    check_level(level)
    if type(descriptor) is not dict or descriptor.keys() != DESCRIPTOR_KEYS:
        raise LayoutError(f"a dtype has {', '.join(sorted(DESCRIPTOR_KEYS))}, got {shown(descriptor)}")
    itemsize, aligned, fields = descriptor["itemsize"], descriptor["aligned"], descriptor["fields"]
    check_size("itemsize", itemsize)
    if type(aligned) is not bool or type(descriptor["record"]) is not bool or type(fields) is not list:
        raise LayoutError(f"a dtype is aligned or not, a numpy.record or not, and has a list of fields, got {shown(descriptor)}")
    spec: dict[str, Any] = {"names": [], "formats": [], "offsets": [], "titles": [], "itemsize": itemsize}
    for field in fields:
        check_number(numbers)
        if type(field) is not list or len(field) != 6:
            raise LayoutError(f"a field is a list of 6 values, got {shown(field)}")
        name, title, offset, shape, link, content = field
        try:
            check_text("its name", name)
            if title is not None:
                check_text("its title", title)
            check_size("offset", offset)
            if type(shape) is not list:
                raise LayoutError(f"its shape must be a list, got {shown(shape)}")
            check_link(link, content)
            base = plain_dtype(content, link) if type(content) is str else rebuilt(content, level + 1, numbers)
            check_shape(shape, base.itemsize)
            made = sub_array(base, shape)
            if offset + made.itemsize > itemsize:
                raise LayoutError(f"it ends at byte {offset + made.itemsize}, the record at {itemsize}")
        except (LayoutError, PoolVersionError) as error:
            raise type(error)(f"field {shown(name)}: {error}") from None
        for key, value in zip(("names", "formats", "offsets", "titles"), (name, made, offset, title), strict=True):
            spec[key].append(value)
    return made_by_numpy(spec, aligned, np.record if descriptor["record"] else np.void)


def made_by_numpy(spec: Any, aligned: bool, of: type) -> np.dtype[Any]:
    """Return NumPy's dtype of a record."""
    try:
        dtype: np.dtype[Any] = np.dtype(spec, align=aligned)
        return dtype if of is np.void else np.dtype((of, dtype))
    except MemoryError:
        raise
    except Exception as error:  # ValueError, TypeError or OverflowError, by version
        raise LayoutError(f"NumPy makes no dtype of it: {error}") from None


def sub_array(base: np.dtype[Any], shape: list[int]) -> np.dtype[Any]:
    """Return the dtype of a field of this shape."""
    try:
        return np.dtype((base, tuple(shape))) if shape else base
    except ValueError as error:
        raise LayoutError(f"NumPy makes no sub-array of shape {shown(shape)}: {error}") from None


def plain_text(dtype: np.dtype[Any]) -> str:
    """Return the text of a dtype without fields."""
    if dtype.subdtype is not None:
        raise LayoutError(f"it is a sub-array of sub-arrays of shape {dtype.shape}; write all dimensions as one shape")
    if not is_own(dtype) or dtype.kind not in KINDS or (dtype.kind == "V" and dtype.type is not np.void):
        raise LayoutError(f"{shown(dtype)} has no form in a file; numbers, dates, text of fixed length and plain bytes have one")
    return f"{dtype.str}/{mantissa_bits()}" if is_long_double(dtype) else dtype.str


def plain_dtype(text: str, link: str | None) -> np.dtype[Any]:
    """Return the dtype of such a text."""
    match = PLAIN.fullmatch(text)
    if match is None or int(match[2]) * (4 if match[1] == "U" else 1) > MOST_ITEMSIZE:
        raise LayoutError(f"{shown(text)} is no dtype of a file")
    if match[3] and int(match[3]) != mantissa_bits():
        raise PoolVersionError(f"its long doubles have {int(match[3])} bits of mantissa, this machine's {mantissa_bits()}")
    plain = text.partition("/")[0]
    try:
        return np.dtype(plain) if link is None else np.dtype(plain, metadata={LINK: link})
    except (TypeError, ValueError) as error:
        raise LayoutError(f"{shown(text)} is no dtype of NumPy's: {error}") from None


def is_long_double(dtype: np.dtype[Any]) -> bool:
    """Whether it is a float, or a complex number of floats, longer than the standard's: machines differ in their bits."""
    return dtype.char in "gG" and dtype.itemsize > (8 if dtype.char == "g" else 16)


def mantissa_bits() -> int:
    """Return how many bits of a long double are its mantissa's."""
    return int(np.finfo(np.longdouble).nmant)


def check_level(level: int) -> None:
    """Raise if a record is too deep in others."""
    if level > MOST_LEVELS:
        raise LayoutError(f"records in records go {MOST_LEVELS} levels deep at most")


def check_number(numbers: Iterator[int]) -> None:
    """Raise if there is one field too many."""
    if next(numbers, None) is None:
        raise LayoutError(f"a dtype has at most {MOST_FIELDS} fields")


def check_size(what: str, value: Any) -> None:
    """Raise unless a number of bytes is one that every NumPy can take."""
    if type(value) is not int or not 0 <= value <= MOST_ITEMSIZE:
        raise LayoutError(f"{what} must be an integer of 0 .. {MOST_ITEMSIZE}, got {shown(value)}")


def check_text(what: str, value: Any) -> None:
    """Raise unless a value is a string that UTF-8 can hold."""
    if type(value) is not str:
        raise LayoutError(f"{what} must be a string, got {shown(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise LayoutError(f"{what} must be text, got the half of a surrogate pair in {shown(value)}") from None


def check_shape(shape: list[int] | tuple[int, ...], itemsize: int) -> None:
    """Raise unless a sub-array is of few dimensions and bytes."""
    if len(shape) > MOST_DIMENSIONS:
        raise LayoutError(f"its shape must have at most {MOST_DIMENSIONS} dimensions, got {len(shape)}")
    for size in shape:
        check_size("a dimension", size)
    if math.prod(shape) * itemsize > MOST_ITEMSIZE:
        raise LayoutError(f"its size must be at most {MOST_ITEMSIZE} bytes, got shape {shown(tuple(shape))} of {itemsize} bytes")


def check_link(link: Any, content: Any) -> None:
    """Raise unless a field is no link, or is a link to a cache that has a name."""
    if link is not None:
        check_text("the name of its link", link)
        if not link or content not in LINKS:
            raise LayoutError(f"a link is an int64 and names a cache, got {shown(content)} for {shown(link)}")
