"""Base classes of objects that are not copied, and of objects that are opened and closed."""

from __future__ import annotations

from types import TracebackType
from typing import Any, ClassVar, NoReturn, TypeVar

from ._faults import add_note
from .errors import ClosedError, CopyError, FaultError

Self = TypeVar("Self", bound="Closable")


class Unique:
    """An object that is neither copied nor pickled."""

    __slots__ = ()
    _not_copied: ClassVar[str] = ""  # ends of messages
    _not_pickled: ClassVar[str] = ": its memory is private to this process"

    def __copy__(self) -> NoReturn:
        """Refuse to be copied."""
        raise CopyError(f"{self._subject()} cannot be copied{self._not_copied}")

    def __deepcopy__(self, memo: Any) -> NoReturn:
        """Refuse to be copied."""
        self.__copy__()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse to be pickled."""
        raise CopyError(f"{self._subject()} cannot be pickled{self._not_pickled}")

    def _subject(self) -> str:
        """Return how messages call the object."""
        return repr(self)


class Closable(Unique):
    """An object that is open from the end of `__init__` until `close`."""

    __slots__ = ()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        raise NotImplementedError

    def close(self) -> None:
        """Refuse everything from now on; then raise the faults of compiled code that nobody was told of."""
        fault = self._end()
        if fault is not None:
            raise fault

    def _end(self) -> FaultError | None:
        """Refuse everything from now on; returns the faults that nobody was told of."""
        raise NotImplementedError

    def __bool__(self) -> bool:
        """Whether it is open, whatever it holds."""
        try:
            return not self.closed
        except ClosedError:  # it never was
            return False

    def __enter__(self: Self) -> Self:
        """Return the object; leaving the block closes it, and tells of faults, beside another exception by a note of that."""
        self._need_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the object; faults are raised, or a note of the exception that ends the block."""
        fault = self._end()
        if fault is not None:
            if error is None:
                raise fault
            add_note(error, fault)

    def _closed_text(self) -> str:
        """Return the message of the error after `close`."""
        raise NotImplementedError

    def _need_open(self) -> None:
        """Raise if the object is closed."""
        if self.closed:
            raise ClosedError(self._closed_text())

    def _need_opened(self) -> None:
        """Raise if `__init__` of a cache or an allocator never succeeded: the last thing that it sets is the Numba type."""
        if not hasattr(self, "_numba_type_"):
            raise ClosedError(f"this {type(self).__name__} was never opened")
