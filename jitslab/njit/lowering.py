"""
Calls of the library in compiled code: one function types each call and lowers it to calls of kernels.

The body of a Numba overload is typed, lowered and optimised again in each process that compiles a caller of it: 10 to 60 ms,
where a small function of the user's takes 40.  Here only the call itself is emitted; the kernel's code is read from disk, linked
and inlined: 1 to 2 ms.

A *description* of a call is a function ``(holder type, *types of the arguments) -> (type of the result, lower)``; it returns
None if it does not apply, and raises `NumbaTypeError` if it refuses the arguments.  ``lower(site, row, *arguments)`` emits the
call and returns its value; `row` is the pointer to the holder's row, and integers and booleans are int64.

A description with ``**fields`` takes any keyword arguments: it is given their types by name, and ``lower`` one more argument: the
type and value of each by its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from numba import types
from numba.core import cgutils
from numba.core.errors import NumbaTypeError
from numba.core.imputils import lower_builtin, lower_constant, lower_getattr
from numba.core.typing import templates
from numba.extending import models, register_model

from ..errors import FieldNameError
from ..machine.compile import PTR
from ..machine.holder import has_in_python
from ..machine.pointers import ArrayPointer, StructPointer, lower_field

Description = Callable[..., Any]  # (holder type, *argument types) -> (result type, lower), or None


class Pointer(NamedTuple):
    """A lowered pointer, of one of the types of `machine.pointers`."""

    of: Any
    value: Any


class Site:
    """A place in a user's function where a call is lowered."""

    def __init__(self, context: Any, builder: Any) -> None:
        self.context, self.builder = context, builder

    def emit(self, intrinsic: Any, *values: Any) -> Any:
        """Emit an intrinsic for int64s, pointers, and literals of Python."""
        of = tuple(map(_type_of, values))
        signature, emit = intrinsic._defn(self.context.typing_context, *of)
        return self._typed(signature, emit(self.context, self.builder, signature, tuple(map(_value_of, values))))

    def field(self, row: Pointer, name: str) -> Any:
        """Emit the load of a field of a row."""
        value = lower_field(self.context, self.builder, row.of, row.value, name)
        of = row.of.type_of(name)
        return Pointer(of, value) if value.type == PTR else value

    def call(self, kernel: Any, *values: Any) -> Any:
        """Emit the call of a kernel that takes int64s and pointers; it is compiled now if it is not on disk."""
        typing = self.context.typing_context
        callee = typing.resolve_value_type(kernel)
        signature = callee.get_call_type(typing, tuple(map(_type_of, values)), {})
        return self._typed(signature, self.context.get_function(callee, signature)(self.builder, tuple(map(_value_of, values))))

    def entry(self, call: Any, row: Pointer, name: str, *values: Any) -> Any:
        """Emit the call of an entry point by the intrinsic `call`."""
        many = types.Tuple((types.int64,) * len(values))
        arguments = self.context.make_tuple(self.builder, many, values)
        signature, emit = call._defn(self.context.typing_context, row.of, types.literal(name), many)
        return emit(self.context, self.builder, signature, (row.value, None, arguments))

    @staticmethod
    def _typed(signature: Any, value: Any) -> Any:
        """Return a value; a pointer together with its type."""
        return Pointer(signature.return_type, value) if isinstance(signature.return_type, POINTERS) else value

    def record(self, record: Any, at: Any) -> Any:
        """Return the record of a Numba type at an address."""
        return self.builder.inttoptr(at, self.context.get_value_type(record))


POINTERS = (StructPointer, ArrayPointer)


def _type_of(value: Any) -> Any:
    """Return the Numba type of an argument of a kernel or an intrinsic."""
    if isinstance(value, (str, int)):
        return types.literal(value)
    return value.of if isinstance(value, Pointer) else types.int64


def _value_of(value: Any) -> Any:
    """Return LLVM's value of an argument; None for a literal."""
    if isinstance(value, (str, int)):
        return None
    return value.value if isinstance(value, Pointer) else value


def row_of(site: Site, holder_type: Any, value: Any) -> Any:
    """Return the pointer to the row of a lowered holder."""
    address = cgutils.create_struct_proxy(holder_type)(site.context, site.builder, value=value).ptr
    return Pointer(holder_type.row, site.builder.inttoptr(address, PTR))


class FieldNames(types.Opaque):  # type: ignore[misc]  # numba has no types
    """
    Numba type of the last argument of a call with fields: it says what the arguments before it are called.

    Numba hands values to a lowering by their places alone, and forgets the names.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        super().__init__(f"jitslab.fields({', '.join(names)})")


register_model(FieldNames)(models.OpaqueModel)


@lower_constant(FieldNames)  # type: ignore[untyped-decorator]  # numba has no types
def lower_names(context: Any, builder: Any, typ: Any, value: Any) -> Any:
    """Nothing: the type says it all."""
    return context.get_dummy_value()


def _type_call(describe: Description, name: str, args: Any, kws: Any) -> Any:
    """Return the signature of a call, or None if the description does not apply."""
    shape = inspect.signature(describe).replace(return_annotation=inspect.Signature.empty)
    try:
        bound = shape.bind(*args, **kws)
    except TypeError as error:
        raise NumbaTypeError(f"jitslab: {name}: {error}") from error
    described = describe(*bound.args, **bound.kwargs)
    if described is None:
        return None
    own = [it for it in shape.parameters.values() if it.kind is not it.VAR_KEYWORD]
    if not bound.kwargs:
        return templates.signature(described[0], *bound.args).replace(pysig=shape.replace(parameters=own))
    names = tuple(bound.kwargs)
    given = *bound.args, *map(types.unliteral, bound.kwargs.values()), FieldNames(names)
    return templates.signature(described[0], *given).replace(pysig=_with_fields(own[: len(bound.args)], names))


def _with_fields(own: list[inspect.Parameter], names: tuple[str, ...]) -> inspect.Signature:
    """Return the parameters of a call with fields: its own, then the fields, then their names, which nobody gives."""
    hidden = inspect.Parameter.POSITIONAL_ONLY  # by a name that no field has
    first = [it.replace(name=f"_{i}_{'_'.join(names)}") if it.kind is hidden else it for i, it in enumerate(own)]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD  # Numba wants keywords-only at the end of what is given by place
    fields = [inspect.Parameter(name, kind) for name in names]
    last = inspect.Parameter("_" * (2 + max(map(len, names))), kind, default=names)
    return inspect.Signature([*first, *fields, last])


def _lower_call(describe: Description) -> Callable[..., Any]:
    """Return the lowering of a described call."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        site = Site(context, builder)
        own, fields = signature.args, {}
        if isinstance(own[-1], FieldNames):
            names, own = own[-1].names, own[: -1 - len(own[-1].names)]
            fields = {name: given for name, *given in zip(names, signature.args[len(own) :], values[len(own) :], strict=False)}
        arguments = []
        for value, of in zip(values[1 : len(own)], own[1:], strict=True):
            is_number = isinstance(of, (types.Integer, types.Boolean))
            arguments.append(context.cast(builder, value, of, types.int64) if is_number else value)
        if fields:
            arguments.append(fields)
        described = describe(*own, **{name: of for name, (of, _) in fields.items()})
        answer = described[1](site, row_of(site, own[0], values[0]), *arguments)
        return context.get_dummy_value() if answer is None else answer

    return lower


def _attributes(holder_type: type[types.Type]) -> Any:
    """Return the class that resolves the attributes of a holder type; the first attribute makes it."""
    if holder_type not in _resolvers:

        class Attributes(templates.AttributeTemplate):  # type: ignore[misc]  # numba has no types
            key = holder_type

            def generic_resolve(self, holder: Any, name: str) -> None:
                """Raise for an attribute that compiled code does not have."""
                if name.startswith("_"):  # asked for by Numba, of any type
                    return
                if has_in_python(holder_type, name):
                    advice = PYTHON_ONLY.get(name, "call it before or after, or within objmode")
                    raise NumbaTypeError(f"jitslab: {name} is there in Python only, not in compiled code; {advice}")
                known = [it.removeprefix("resolve_") for it in dir(self) if it.startswith("resolve_")]
                raise NumbaTypeError(f"jitslab: {with_near(f'there is no {name!r} in compiled code', name, known)}")

        _resolvers[holder_type] = templates.infer_getattr(Attributes)
    return _resolvers[holder_type]


_resolvers: dict[type[types.Type], Any] = {}
_GUARDS = "guards are Python's: write h, r = cache.new() here, and cache.free(h)"
PYTHON_ONLY = {  # what does the same in compiled code
    "allocate": _GUARDS,
    "allocate_many": _GUARDS,
    "adopt": _GUARDS,
    "allocate_object": _GUARDS,
    "gather": "read cache[h] in a loop",
    "scatter": "write cache[h] in a loop",
    "live": "write for h in cache",
    "records": "write cache[h], or cache.at_slot(slot)",
    "slots": "the slot is h & 0xFFFFFFFF",
    "retain": "free what is not to stay, in a loop over the cache",
    "raise_faults": "cache.faults tells how many there are",
    "closed": "alloc answers NULL from a closed cache",
}


def with_near(message: str, name: str, known: Iterable[str]) -> str:
    """Return a message that there is no such name, and which of those that there are is near; if none is, all."""
    return str(FieldNameError(message, name, tuple(known)))


def method(holder_type: type[types.Type], name: str) -> Callable[[Description], Description]:
    """Describe a method of a holder type."""
    key = f"jitslab.{holder_type.__name__}.{name}"

    def decorate(describe: Description) -> Description:
        def resolve(self: Any, holder: Any, args: Any, kws: Any) -> Any:
            signature = _type_call(describe, name, (holder, *args), kws)
            return None if signature is None else signature.as_method()

        setattr(_attributes(holder_type), f"resolve_{name}", templates.bound_function(key)(resolve))
        lower_builtin(key, holder_type, types.VarArg(types.Any))(_lower_call(describe))
        return describe

    return decorate


def attribute(holder_type: type[types.Type], name: str) -> Callable[[Description], Description]:
    """Describe an attribute of a holder type."""

    def decorate(describe: Description) -> Description:
        setattr(_attributes(holder_type), f"resolve_{name}", lambda self, holder: describe(holder)[0])

        @lower_getattr(holder_type, name)  # type: ignore[untyped-decorator]  # numba has no types
        def lower(context: Any, builder: Any, typ: Any, value: Any) -> Any:
            site = Site(context, builder)
            return describe(typ)[1](site, row_of(site, typ, value))

        return describe

    return decorate


def function(holder_type: type[types.Type], operation: Callable[..., Any]) -> Callable[[Description], Description]:
    """Describe a function or an operator whose first argument is of a holder type."""

    def decorate(describe: Description) -> Description:
        @templates.infer_global(operation)
        class Operation(templates.AbstractTemplate):  # type: ignore[misc]  # numba has no types
            def generic(self, args: Any, kws: Any) -> Any:
                is_ours = bool(args) and isinstance(args[0], holder_type)
                return _type_call(describe, operation.__name__, args, kws) if is_ours else None

        lower_builtin(operation, holder_type, types.VarArg(types.Any))(_lower_call(describe))
        return describe

    return decorate
