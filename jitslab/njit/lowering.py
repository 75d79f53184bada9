"""
Calls of the library in compiled code: typed by one function, lowered to calls of kernels.

Above `blocktype`, below `compiled`.  The body of a Numba overload is typed, lowered and optimised anew in each process that
compiles a caller of it: 10 to 60 ms, where a small function of the user's takes 40.  Here only the call itself is emitted, and
the kernel's code is read from the disk, linked and inlined: 1 to 2 ms.

What is called is described by a function ``(type of the block, *types of the arguments) -> (type of the result, lower)``, or None
where it does not apply; it raises `NumbaTypeError` for arguments that are refused.  ``lower(site, block, *arguments)`` emits the
call and returns its value; `block` is the address of the block, and integers and booleans are int64.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils
from numba.core.errors import NumbaTypeError
from numba.core.imputils import lower_builtin, lower_getattr
from numba.core.typing import templates

from ..core.calls import call_table, my_heap
from ..machine.compile import I64, PTR, HeapPointer
from ..machine.memory import frozen

Description = Callable[..., Any]  # (block type, *argument types) -> (result type, lower), or None


class Site:
    """A place in a user's function where a call is lowered."""

    def __init__(self, context: Any, builder: Any) -> None:
        self.context, self.builder = context, builder

    def heap(self, control: Any) -> Any:
        """Emit the look-up of the calling thread's heap."""
        return self.emit(my_heap, (types.int64,), control)

    def emit(self, intrinsic: Any, argument_types: tuple[Any, ...], *values: Any) -> Any:
        """Emit what an intrinsic of `_native` emits."""
        signature, emit = intrinsic._defn(self.context.typing_context, *argument_types)
        return emit(self.context, self.builder, signature, values)

    def frozen(self, base: Any, offset: int) -> Any:
        """Emit the load of a field, of a control block or of a heap, that never changes."""
        return self.emit(frozen, (_type_of(base), types.literal(offset)), base, I64(offset))

    def call(self, kernel: Any, *values: Any) -> Any:
        """Emit the call of a kernel that takes int64s and heaps; it is compiled now where it is not on disk."""
        typing = self.context.typing_context
        callee = typing.resolve_value_type(kernel)
        signature = callee.get_call_type(typing, tuple(map(_type_of, values)), {})
        return self.context.get_function(callee, signature)(self.builder, values)

    def table(self, block: Any, field: int, *values: Any) -> Any:
        """Emit the call of an entry point that stands in a block."""
        many = types.UniTuple(types.int64, len(values))
        arguments = self.context.make_tuple(self.builder, many, values)
        return self.emit(call_table, (types.int64, types.literal(field), many), block, I64(field), arguments)

    def record(self, record: Any, at: Any) -> Any:
        """The record of a Numba type at an address."""
        return self.builder.inttoptr(at, self.context.get_value_type(record))


def _type_of(value: Any) -> Any:
    """Return the Numba type of what kernels take."""
    return HeapPointer if value.type == PTR else types.int64


def block_of(site: Site, block_type: Any, value: Any) -> Any:
    """int64 address of the block of a lowered object."""
    return cgutils.create_struct_proxy(block_type)(site.context, site.builder, value=value).ptr


def _type_call(describe: Description, name: str, args: Any, kws: Any) -> Any:
    """Return the signature of a call, or None where it is another's."""
    shape = inspect.signature(describe).replace(return_annotation=inspect.Signature.empty)
    try:
        bound = shape.bind(*args, **kws)
    except TypeError as error:
        raise NumbaTypeError(f"jitslab: {name}: {error}") from error
    described = describe(*bound.args)
    return None if described is None else templates.signature(described[0], *bound.args).replace(pysig=shape)


def _lower_call(describe: Description) -> Callable[..., Any]:
    """Return the lowering of what is described."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        site = Site(context, builder)
        arguments = []
        for value, of in zip(values[1:], signature.args[1:], strict=True):
            is_number = isinstance(of, (types.Integer, types.Boolean))
            arguments.append(context.cast(builder, value, of, types.int64) if is_number else value)
        answer = describe(*signature.args)[1](site, block_of(site, signature.args[0], values[0]), *arguments)
        return context.get_dummy_value() if answer is None else answer

    return lower


def _attributes(block_type: type[types.Type]) -> Any:
    """Return the class that resolves the attributes of a block type, made with the first of them."""
    if block_type not in _resolvers:

        class Attributes(templates.AttributeTemplate):  # type: ignore[misc]  # numba has no types
            key = block_type

        _resolvers[block_type] = templates.infer_getattr(Attributes)
    return _resolvers[block_type]


_resolvers: dict[type[types.Type], Any] = {}


def method(block_type: type[types.Type], name: str) -> Callable[[Description], Description]:
    """Describe a method of a block type."""
    key = f"jitslab.{block_type.__name__}.{name}"

    def decorate(describe: Description) -> Description:
        def resolve(self: Any, block: Any, args: Any, kws: Any) -> Any:
            signature = _type_call(describe, name, (block, *args), kws)
            return None if signature is None else signature.as_method()

        setattr(_attributes(block_type), f"resolve_{name}", templates.bound_function(key)(resolve))
        lower_builtin(key, block_type, types.VarArg(types.Any))(_lower_call(describe))
        return describe

    return decorate


def attribute(block_type: type[types.Type], name: str) -> Callable[[Description], Description]:
    """Describe an attribute of a block type."""

    def decorate(describe: Description) -> Description:
        setattr(_attributes(block_type), f"resolve_{name}", lambda self, block: describe(block)[0])

        @lower_getattr(block_type, name)  # type: ignore[untyped-decorator]  # numba has no types
        def lower(context: Any, builder: Any, typ: Any, value: Any) -> Any:
            site = Site(context, builder)
            return describe(typ)[1](site, block_of(site, typ, value))

        return describe

    return decorate


def function(block_type: type[types.Type], operation: Callable[..., Any]) -> Callable[[Description], Description]:
    """Describe what a function or an operator does with a block type as its first argument."""

    def decorate(describe: Description) -> Description:
        @templates.infer_global(operation)
        class Operation(templates.AbstractTemplate):  # type: ignore[misc]  # numba has no types
            def generic(self, args: Any, kws: Any) -> Any:
                is_ours = bool(args) and isinstance(args[0], block_type)
                return _type_call(describe, operation.__name__, args, kws) if is_ours else None

        lower_builtin(operation, block_type, types.VarArg(types.Any))(_lower_call(describe))
        return describe

    return decorate
