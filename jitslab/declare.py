"""
`record`: records declared as annotated classes, which stand wherever a dtype does.

One rule: an annotation says what Python and type checkers see, and in `Annotated` also what NumPy calls it.
"""

from __future__ import annotations

import inspect
import keyword
import sys
import traceback
import types
import typing
import weakref
from typing import Annotated, Any, Generic, Protocol, TypeVar

import numpy as np

from ._closable import Unique
from ._convert import make_template, pack
from ._validate import check_dtype
from .errors import ArrayError, FieldError, LayoutError
from .guard import Fields, SlabObjectGuard, SlabRecordView, has_own
from .guard_class import PythonGuard, PythonView

T = TypeVar("T")
HEAP_TYPE = 1 << 9  # flag of the classes that Python code makes
_NO_DEFAULT = object()
PLAIN = (bool, int, float, complex)  # of Python's own types, those that have one size in NumPy

# Methods of a class that its guards would not call: a guard has its own life and attributes, and is equal to itself only.
NEVER_CALLED = {"__init__", "__new__", "__del__", "__eq__", "__hash__"}
NEVER_CALLED |= {"__getattribute__", "__getattr__", "__setattr__", "__delattr__"}
EVERY_CLASS = {"__module__", "__doc__", "__slots__", "__weakref__", "__dict__", "__annotations__", "__orig_bases__"}
EVERY_CLASS |= {"__parameters__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__firstlineno__"}
EVERY_CLASS |= {"__static_attributes__", "__type_params__", "__qualname__"}

b1 = Annotated[bool, "?"]
i1 = Annotated[int, "i1"]
i2 = Annotated[int, "i2"]
i4 = Annotated[int, "i4"]
i8 = Annotated[int, "i8"]
u1 = Annotated[int, "u1"]
u2 = Annotated[int, "u2"]
u4 = Annotated[int, "u4"]
u8 = Annotated[int, "u8"]
f2 = Annotated[float, "f2"]
f4 = Annotated[float, "f4"]
f8 = Annotated[float, "f8"]
c8 = Annotated[complex, "c8"]
c16 = Annotated[complex, "c16"]


def record(cls: type[T]) -> type[T]:
    """
    Make a class with annotations the declaration of a record, which stands wherever a dtype does.

    Each annotation is a field, in its order, aligned as C does it: one of `jitslab.i1` to `jitslab.c16`, bool, int, float,
    complex, or a NumPy scalar type; another declared class, nested; or ``Annotated[what Python sees, what NumPy calls it]``,
    such as ``Annotated[NDArray[np.float32], ("f4", (3,))]``, ``Annotated[bytes, "S8"]`` and
    ``Annotated[int, jitslab.link("nodes")]``.
    A class that inherits from a declared one has its fields first.

    ``value: jitslab.f8 = 1.0`` is a default: every record of a cache of this class begins with it, also in compiled code.  Fields
    without one begin with zeros as soon as any field has a default, also one of a nested class.  A cache with ``init=record``
    begins with that record, whatever the defaults are; ``init="zero"`` changes nothing of them.

    Parameters
    ----------
    cls : type
        With methods and properties, if you like: guards have them.

    Returns
    -------
    type
        A new class of that name with the attribute `dtype`; guards of its caches are instances of it.

    Raises
    ------
    LayoutError
        If a field has no NumPy type, a default that it cannot hold, or the name of something that guards have; named in the
        message.

    Notes
    -----
    The class is made anew, with empty ``__slots__``, as by ``dataclass(slots=True)``: so ``super()`` without arguments does
    not work in its methods, and it has no instances but guards and views.  To type checkers, ``with cache.allocate() as it``
    gives one of the class.

    Examples
    --------
    >>> import jitslab
    >>> from typing import Annotated
    >>> @jitslab.record
    ... class Node:
    ...     value: jitslab.f8
    ...     next: Annotated[int, jitslab.link("nodes")]
    ...     def double(self):
    ...         self.value *= 2
    >>> nodes = jitslab.SlabCache("nodes", Node, capacity=10, init="zero")
    >>> with nodes.allocate() as node:
    ...     node.value = 1.5
    ...     node.double()
    ...     node
    <Node of 'nodes': value=3.0, next=0>
    >>> jitslab.links_of(Node)
    {('next',): 'nodes'}
    >>> nodes.close()

    >>> @jitslab.record
    ... class Agent:
    ...     energy: jitslab.f8 = 1.0
    ...     id: jitslab.i8
    >>> with jitslab.SlabCache("agents", Agent, capacity=10) as agents:
    ...     agents[agents.alloc(id=3)].item()
    (1.0, 3)
    """
    if not isinstance(cls, type):
        raise LayoutError(f"record decorates a class, got {type(cls).__name__}")
    for base, made_by in ((tuple, "NamedTuple"), (dict, "TypedDict")):
        if issubclass(cls, base):
            raise LayoutError(f"{cls.__name__} is a {base.__name__}; a record is a class of its own, without {made_by}")
    if "__dataclass_fields__" in vars(cls):
        raise LayoutError(f"{cls.__name__} is a dataclass; write @jitslab.record in the place of @dataclass")
    _check_methods(cls)
    try:
        annotations = inspect.get_annotations(cls)
    except Exception as error:  # from Python 3.14 on they are evaluated now
        raise LayoutError(f"annotations of {cls.__name__}: {error}") from error
    names = _names_around(cls, sys._getframe(1))
    fields, nested = _inherited(cls)
    for name, annotation in annotations.items():
        try:
            annotation = plain(_evaluated(annotation, *names))
        except Exception as error:  # whatever the text of the annotation raises
            raise LayoutError(f"field {name!r} of {cls.__name__}: {error}") from error
        if typing.ClassVar in (annotation, typing.get_origin(annotation)):
            continue
        _check_name(cls, name, fields)
        fields[name] = _dtype_of(annotation, f"field {name!r} of {cls.__name__}")
        if _is_declared(annotation):
            nested[name] = whole(annotation)
    if not fields:
        raise LayoutError(f"{cls.__name__} has no annotated fields")
    dtype = check_dtype(np.dtype(list(fields.items()), align=True))
    return _remade(cls, cls.__bases__, dtype, nested, _template(cls, dtype, nested))


def _template(cls: type, dtype: np.dtype[Any], nested: dict[str, Any]) -> bytes | None:
    """Return the record that has the defaults of a class, of its bases and of nested classes, and zeros; None if none has any."""
    record = np.zeros((), dtype)
    has_defaults = False
    for base in cls.__bases__:
        if _is_declared(base) and base.__jitslab_template__ is not None:  # type: ignore[attr-defined]  # a declared class has it
            inherited = np.frombuffer(base.__jitslab_template__, base.dtype)[0]  # type: ignore[attr-defined]  # likewise
            has_defaults = True
            for name in inherited.dtype.names:
                record[name] = inherited[name]
    for name in dtype.names or ():
        default = vars(cls).get(name, _NO_DEFAULT)
        if default is not _NO_DEFAULT:
            try:
                record[name] = pack(default, dtype[name], name)
            except (ArrayError, FieldError) as error:
                raise LayoutError(f"default of field {name!r} of {cls.__name__}: {error}") from error
        elif name in nested and name in cls.__annotations__ and nested[name].__jitslab_template__ is not None:
            record[name] = np.frombuffer(nested[name].__jitslab_template__, dtype[name])[0]
        else:
            continue
        has_defaults = True
    return bytes(record.tobytes()) if has_defaults else None


def template_of(init: Any, dtype: np.dtype[Any], declared: Any) -> bytes | None:
    """Return the record that those of a cache begin with: `init` if that is a record, else the defaults of a declared class."""
    template = make_template(init, dtype)
    defaults = None if declared is None else declared.__jitslab_template__
    return template if defaults is None or not (init is None or isinstance(init, str)) else defaults


def declared_class(dtype: Any) -> Any:
    """
    Return the declared class that stands for a dtype, or None.

    Raises
    ------
    LayoutError
        If the class inherits from a declared one, and is none itself: its guards would lack the fields that it adds.  If it was
        changed afterwards, as `dataclass` does: guards are equal to themselves only, and made by caches.
    """
    if not isinstance(dtype, type) or not hasattr(dtype, "__jitslab_nested__"):
        return None
    if not _is_declared(dtype):
        raise LayoutError(f"{dtype.__name__} inherits from a declared record; decorate it with jitslab.record, too")
    added = sorted(vars(dtype).keys() & NEVER_CALLED - {"__new__"})
    if added:
        raise LayoutError(f"{dtype.__name__} got {added[0]} after it was declared; write @jitslab.record without @dataclass")
    return whole(dtype)


def plain(annotation: Any) -> Any:
    """Return the value of an alias by ``type``, and the class of a declared class with parameters, such as ``Box[int]``."""
    annotation = getattr(annotation, "__value__", annotation)
    origin = typing.get_origin(annotation)
    return origin if _is_declared(origin) else annotation


_whole: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # classes made anew, by what they were made of


def whole(cls: Any) -> Any:
    """
    Return a declared class, or a base of one; if it came by value, as cloudpickle sends one of a notebook, made anew, once.

    Such a class has a __dict__, which guards have no room for.
    """
    if not cls.__dictoffset__ and not cls.__weakrefoffset__:
        return cls
    if cls not in _whole:
        bases = tuple(map(whole, cls.__bases__))
        if _is_declared(cls):
            nested = {name: whole(of) for name, of in cls.__jitslab_nested__.items()}
            made = _remade(cls, bases, check_dtype(cls.dtype), nested, cls.__jitslab_template__)
        else:
            namespace = _namespace(cls) | {"__slots__": ()}
            made = types.new_class(cls.__name__, bases, {"metaclass": type(cls)}, lambda names: names.update(namespace))
        _whole.setdefault(cls, made)
    return _whole[cls]


def _namespace(cls: type) -> dict[str, Any]:
    """Return what a class has, but for what Python makes of its slots."""
    return {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__", "__slots__")}


def _inherited(cls: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of declared bases, and the declared classes of those that are nested."""
    fields: dict[str, Any] = {}
    nested: dict[str, Any] = {}
    for base in cls.__bases__:
        if _is_declared(base):
            names = base.dtype.names  # type: ignore[attr-defined]  # a declared class has it
            for name in names:
                _check_name(cls, name, fields)
                fields[name] = base.dtype[name]  # type: ignore[attr-defined]  # likewise
            nested |= base.__jitslab_nested__  # type: ignore[attr-defined]  # likewise
    return fields, nested


def _names_around(cls: type, frame: types.FrameType) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Return the globals and locals that the text of an annotation of a class can name.

    They are found on the stack: the code that makes the class is still running, whether its module is in `sys.modules` or not.
    Its locals, and those of the functions and classes around it, are its own; a module without a name is called builtins.
    """
    frames = [it for it, _ in traceback.walk_stack(frame) if it.f_globals.get("__name__", "builtins") == cls.__module__]
    around = set(cls.__qualname__.split("."))
    local: dict[str, Any] = {}
    for it in reversed(frames):
        if it is frame or it.f_code.co_name in around:
            local |= it.f_locals
    module = frames[0].f_globals if frames else getattr(sys.modules.get(cls.__module__), "__dict__", {})
    return module, local | dict(vars(cls))


def _evaluated(annotation: Any, module: dict[str, Any], local: dict[str, Any]) -> Any:
    """Return the value of an annotation, also of a string, as after ``from __future__ import annotations``."""
    if not isinstance(annotation, str):
        return annotation
    holder = type("holder", (), {"__annotations__": {"it": annotation}})  # in classes only, typing knows ClassVar
    try:
        return typing.get_type_hints(holder, module, local, include_extras=True)["it"]
    except TypeError:
        if eval(annotation, module, local) is typing.ClassVar:  # Python 3.10 knows only ClassVar[...] in text
            return typing.ClassVar
        raise


def _is_declared(it: Any) -> bool:
    """Whether an object is a class that `record` made."""
    return isinstance(it, type) and "__jitslab_nested__" in vars(it)


def _check_name(cls: type, name: str, fields: dict[str, Any]) -> None:
    """Raise if a field of that name could not be an attribute of guards."""
    where = f"field {name!r} of {cls.__name__}"
    if name in fields:
        raise LayoutError(f"{where} is declared twice")
    if name.startswith("_") or keyword.iskeyword(name):
        raise LayoutError(f"{where}: names that begin with _ are not for fields")
    if has_own(SlabObjectGuard, name) or has_own(SlabRecordView, name) or name == "dtype":
        raise LayoutError(f"{where} would hide what guards have by that name; rename it")


def _check_methods(cls: type) -> None:
    """Raise for a method that guards have themselves, or would never call: it would be hidden in silence."""
    own = vars(Unique).keys() | vars(Fields).keys() | vars(SlabObjectGuard).keys() | vars(SlabRecordView).keys() | NEVER_CALLED
    for base in cls.__mro__:
        if base in (Generic, Protocol) or not base.__flags__ & HEAP_TYPE or _is_declared(base):
            continue
        for name in vars(base):
            if name in own and name not in EVERY_CLASS and not (name == "__hash__" and vars(base)[name] is None):
                where = cls.__name__ if base is cls else f"{cls.__name__} (of its base {base.__name__})"
                raise LayoutError(f"method {name!r} of {where} would be hidden by what guards have by that name; rename it")


def _dtype_of(annotation: Any, where: str) -> np.dtype[Any]:
    """Return the dtype that an annotation means."""
    named = annotation
    if typing.get_origin(annotation) is Annotated:
        named = annotation.__metadata__[0]
    elif not (annotation in PLAIN or _is_declared(annotation) or isinstance(annotation, np.dtype) or _is_scalar(annotation)):
        text, example = _as_written(annotation), {str: "U8", bytes: "S8"}.get(annotation, "f8")
        raise LayoutError(f"{where}: no NumPy type in {text}; write Annotated[{text}, {example!r}] with the one you mean")
    try:
        dtype: np.dtype[Any] = np.dtype(named)
    except (TypeError, ValueError) as error:
        raise LayoutError(f"{where}: {error}") from error
    if dtype.hasobject:
        raise LayoutError(f"{where}: a record cannot hold Python objects")
    if dtype.itemsize == 0:
        raise LayoutError(f"{where}: {dtype} has no size; write one, as in 'S8'")
    return dtype


def _is_scalar(annotation: Any) -> bool:
    """Whether an annotation is one of NumPy's scalar types; abstract ones, such as `numpy.number`, are none."""
    return isinstance(annotation, type) and issubclass(annotation, np.generic) and annotation in np.sctypeDict.values()


def _as_written(annotation: Any) -> str:
    """Return an annotation as users write it."""
    return annotation.__name__ if isinstance(annotation, type) else repr(annotation)


def _refuse(cls: Any, *args: Any, **kwargs: Any) -> Any:
    raise LayoutError(f"{cls.__name__} declares a record; take one from a cache: SlabCache('name', {cls.__name__}).allocate()")


def _remade(
    cls: type[T], bases: tuple[type, ...], dtype: np.dtype[Any], nested: dict[str, Any], template: bytes | None
) -> type[T]:
    """Return the class made anew, without room for attributes that are no fields."""
    namespace = {
        name: it for name, it in _namespace(cls).items() if name not in (dtype.names or ())
    }  # defaults would hide fields
    if vars(cls).get("__slots__"):
        raise LayoutError(f"{cls.__name__} has __slots__; fields are what it annotates")
    namespace |= {
        "__slots__": (),
        "__new__": _refuse,
        "dtype": dtype,
        "__jitslab_nested__": nested,
        "__jitslab_template__": template,
    }
    try:
        made = types.new_class(cls.__name__, bases, {"metaclass": type(cls)}, lambda names: names.update(namespace))
        for guard in ((PythonGuard, SlabObjectGuard), (PythonView, SlabRecordView)):
            types.new_class(cls.__name__, (*guard, made), {}, lambda names: names.update(__slots__=()))
    except TypeError as error:  # slots in a base, a base that is a number, a metaclass
        raise LayoutError(f"guards cannot inherit from {cls.__name__}: {error}") from error
    abstract = getattr(made, "__abstractmethods__", ())
    if abstract:
        raise LayoutError(f"{cls.__name__} lacks what its base declares as abstract: {', '.join(sorted(abstract))}")
    made.__qualname__ = cls.__qualname__
    if made.__dictoffset__:
        raise LayoutError(f"a base of {cls.__name__} gives its objects a __dict__; give that base __slots__ = ()")
    return made
