"""
Records as Python shows them: `numpy.void` whose fields are attributes, as they are in compiled code.

Below `cache`.  `with_attributes` gives a dtype a class of scalars of its own, and so it does for each nested record; the fields
hide what NumPy has under their names.  ``record["x"]`` is NumPy's own code.  The class is not pickled: a pickle has plain NumPy.
"""

from __future__ import annotations

import copyreg
import operator
from typing import Any

import numpy as np

from ._validate import dtype_identity
from .errors import FieldNameError
from .links import links_within


class RecordClass(type):
    """Class of the classes of records: so a pickle can have `numpy.void` in their place."""


def _plain_class(name: str) -> Any:
    """Return a class of NumPy's."""
    return getattr(np, name)


copyreg.pickle(RecordClass, lambda cls: (_plain_class, ("void",)))


class Record(np.void, metaclass=RecordClass):  # type: ignore[misc]  # to type checkers nobody inherits from it, as numpy.record does
    """A record, read and written in place; its fields are attributes."""

    __slots__ = ()
    _plain: np.dtype[Any]  # its dtype, as the user gave it

    def __setattr__(self, name: str, value: Any) -> None:
        """Write a field; nothing else can be set."""
        names = type(self)._plain.names or ()
        if name not in names:
            raise FieldNameError(f"the record has no field {name!r}", name, names)
        self[name] = value

    def __repr__(self) -> str:
        """Show the record as NumPy does."""
        return repr(_as_plain(self))

    def __str__(self) -> str:
        """Show the values as NumPy does."""
        return str(_as_plain(self))

    def __reduce__(self) -> Any:
        """Pickle as NumPy's own record."""
        return _as_plain(self).__reduce__()


def _as_plain(record: Record) -> np.void:
    """Return the record, in place, as one of `numpy.void`; a field may be named `view`."""
    plain: np.void = np.void.view(record, (np.void, type(record)._plain))
    return plain


_made: dict[tuple[Any, ...], np.dtype[Any]] = {}


def with_attributes(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """
    Return a dtype of the same fields whose records have them as attributes.

    Examples
    --------
    >>> import numpy as np
    >>> point = np.dtype([("x", "f8"), ("at", [("y", "f8")])])
    >>> array = np.zeros(2, point).view(with_attributes(point))
    >>> array[1].at.y = 2.5
    >>> array[1]
    np.void((0.0, (2.5,)), dtype=[('x', '<f8'), ('at', [('y', '<f8')])])
    """
    if dtype.subdtype is not None:
        return np.dtype((with_attributes(dtype.base), dtype.shape))
    if dtype.names is None or dtype.fields is None or dtype.type is not np.void:  # np.record has attributes of its own
        return dtype
    key = dtype, dtype_identity(dtype), *links_within(dtype, ())
    if key not in _made:
        of = [with_attributes(dtype.fields[name][0]) for name in dtype.names]
        fields = {
            "names": list(dtype.names),
            "formats": of,
            "offsets": [dtype.fields[name][1] for name in dtype.names],
            "titles": [(*dtype.fields[name], None)[2] for name in dtype.names],
            "itemsize": dtype.itemsize,
        }
        same = dtype if all(a is dtype.fields[name][0] for a, name in zip(of, dtype.names, strict=True)) else _new(dtype, fields)
        attributes = {name: property(operator.itemgetter(name)) for name in dtype.names if not _is_pythons(name)}
        if "dtype" not in attributes:
            attributes["dtype"] = property(lambda self: dtype)
        cls = RecordClass("record", (Record,), {"__slots__": (), "__module__": "jitslab", "_plain": dtype, **attributes})
        _made[key] = np.dtype((cls, same))
    return _made[key]


def _new(dtype: np.dtype[Any], fields: Any) -> np.dtype[Any]:
    """Return a dtype of these fields, aligned and with the metadata of another."""
    options: dict[str, Any] = {"metadata": dict(dtype.metadata)} if dtype.metadata else {}
    made: np.dtype[Any] = np.dtype(fields, align=dtype.isalignedstruct, **options)
    return made


def _is_pythons(name: str) -> bool:
    """Whether Python itself uses a name, or this module: such a field is read by name alone."""
    return name == "_plain" or (name.startswith("__") and name.endswith("__"))
