"""
From a kernel's source to LLVM's IR, in one pass.

Numba types a function by a fixpoint over its variables, after some thirty passes: 35 ms a kernel.  Kernels need less.  A
variable has one type, that of its first value; an integer is an int64, whatever field it was read from; nothing raises.
Numba's own typing and lowering serve fields, intrinsics and calls of C.  A kernel that has more in it, or no source, raises
`UnsupportedError`: Numba's own passes compile it.
"""

from __future__ import annotations

import ast
import builtins
import linecache
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, funcdesc
from numba.core.dispatcher import Dispatcher
from numba.extending import _Intrinsic  # its class has no other name

from .library import KernelLibrary

I1, I32, I64 = (ir.IntType(n) for n in (1, 32, 64))
BOOLEANS = types.Boolean, types.BooleanLiteral
COMPARE = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
OPERATORS: dict[Any, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.USub: operator.neg,
}
EMIT: dict[Any, Callable[..., Any]] = {  # of int64s; overflow is undefined, as in Numba
    ast.Add: lambda builder, a, b: builder.add(a, b, flags=("nsw",)),
    ast.Sub: lambda builder, a, b: builder.sub(a, b, flags=("nsw",)),
    ast.Mult: lambda builder, a, b: builder.mul(a, b, flags=("nsw",)),
    ast.BitAnd: lambda builder, a, b: builder.and_(a, b),
    ast.BitOr: lambda builder, a, b: builder.or_(a, b),
    ast.BitXor: lambda builder, a, b: builder.xor(a, b),
    ast.LShift: lambda builder, a, b: builder.shl(a, b),
    ast.RShift: lambda builder, a, b: builder.ashr(a, b),
}
CASTS = {bool: types.boolean, int: types.int64, float: types.float64} | {
    getattr(np, name): getattr(types, name) for name in ("int64", "uint64", "int32", "uint32", "int16", "uint16", "int8", "uint8")
}


class UnsupportedError(Exception):
    """Only Numba's own passes can compile the kernel."""


class _RetypedError(Exception):
    """A variable, or the result, needs another type."""


class Value(NamedTuple):
    """An expression: its Numba type and LLVM's value.  If it is no value of compiled code (a function): None and the object."""

    type: Any
    of: Any


# --- Source ---


@cache
def _functions(file: str, text: str) -> dict[tuple[int, str], ast.FunctionDef]:
    """Return the functions in a source, by name and by the line of their first decorator."""
    found = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef))
    return {(min([node.lineno, *(each.lineno for each in node.decorator_list)]), node.name): node for node in found}


def source(function: FunctionType) -> ast.FunctionDef:
    """Return the syntax tree of a function."""
    code = function.__code__
    try:
        text = "".join(linecache.getlines(code.co_filename, function.__globals__))
        node = _functions(code.co_filename, text).get((code.co_firstlineno, code.co_name))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UnsupportedError(f"no source: {error}") from error
    if node is None or _parts(_code(node, code.co_freevars)) != _parts(code):  # the file was changed after the import
        raise UnsupportedError("no source")
    return node


def _parts(code: Any) -> tuple[Any, ...]:
    """Return the parts of code that follow from its source alone; the instructions depend on a module's imports, too."""
    return code.co_varnames, code.co_names, list(map(repr, code.co_consts))


def _code(node: ast.FunctionDef, free: tuple[str, ...]) -> Any:
    """Compile a function within another that has its free variables."""
    bare = ast.FunctionDef(node.name, node.args, node.body, [], None, None)
    none = ast.arguments([], [ast.arg(name) for name in free], None, [], [], None, [])
    around = ast.FunctionDef("around", none, [bare, ast.Return(ast.Name(node.name, ast.Load()))], [], None, None)
    for each in bare, around:
        each.type_params = []  # type: ignore[attr-defined]  # of Python 3.12
    module = ast.fix_missing_locations(ast.Module([around], []))
    compiled = compile(module, "around", "exec", dont_inherit=True)
    (outer,) = (each for each in compiled.co_consts if hasattr(each, "co_code"))
    (inner,) = (each for each in outer.co_consts if hasattr(each, "co_code"))
    return inner


# --- The pass ---


class Front:
    """A kernel for some types of arguments.  It is emitted again whenever a type turns out to be another."""

    def __init__(self, function: FunctionType, context: Any, describe: Callable[[Any], Any], args: tuple[Any, ...]) -> None:
        self.function, self.context, self.describe, self.args = function, context, describe, args
        self.node = source(function)
        spec = self.node.args
        if spec.vararg or spec.kwarg or spec.kwonlyargs or spec.defaults or len(spec.args) != len(args):
            raise UnsupportedError("arguments that are not plain")
        self.names = [each.arg for each in spec.args]
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        self.free = {name: cell.cell_contents for name, cell in cells}
        self.assigned = {
            each.id for each in ast.walk(self.node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
        }
        self.locals = self.assigned.union(self.names)
        self.types: dict[str, Any] = {}
        self.result: Any = {"int": types.int64, "bool": types.boolean, "None": types.none}.get(
            str(function.__annotations__.get("return", ""))
        )

    def emit(self, new_module: Callable[[], Any], c_name: str) -> tuple[Any, Any]:
        """Return the function's descriptor and its module, which also has a C function of the name `c_name`, if that is given."""
        self.result = types.int64 if c_name else self.result
        for _ in range(2 + 2 * len(self.locals)):
            try:
                body = _Body(self, new_module())
                body.run()
            except _RetypedError:
                continue
            if c_name:
                body.add_c_function(c_name)
            return body.described, body.module
        raise UnsupportedError("types that do not come to rest")


class _Body:
    """One attempt to emit a kernel."""

    def __init__(self, front: Front, module: Any) -> None:
        self.front, self.context, self.module = front, front.context, module
        self.typing = front.context.typing_context
        self.described = front.describe(front.result or types.none)
        self.function = self.context.declare_function(module, self.described)
        self.builder: Any = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.places: dict[str, Any] = {}
        self.values: dict[str, Value] = {}
        self.loops: list[tuple[Any, Any]] = []  # where `continue` and `break` go

    def run(self) -> None:
        """Emit the whole kernel."""
        arguments = self.context.call_conv.decode_arguments(self.builder, self.described.argtypes, self.function)
        first = self.function.append_basic_block("body")
        for name, of, value in zip(self.front.names, self.described.argtypes, arguments, strict=True):
            if name in self.front.assigned:
                self.store(name, Value(of, value))
            else:
                self.values[name] = Value(of, value)
        entry = self.builder.block
        self.builder.position_at_end(first)
        self.run_all(self.front.node.body)
        if not self.builder.block.is_terminated:
            if self.front.result in (None, types.none):
                self.return_value(Value(types.none, self.context.get_dummy_value()))
            else:
                self.builder.unreachable()
        self.builder.position_at_end(entry)
        self.builder.branch(first)

    def add_c_function(self, name: str) -> None:
        """Add a C function of int64s that calls the kernel."""
        c_function = ir.Function(self.module, ir.FunctionType(I64, [I64] * len(self.described.argtypes)), name)
        self.builder = ir.IRBuilder(c_function.append_basic_block("entry"))
        self.builder.ret(self.call_described(self.described, self.described.restype, list(c_function.args)))

    # --- Statements ---

    def run_all(self, nodes: list[Any]) -> None:
        """Emit statements, up to the first that leaves the others unreached."""
        for node in nodes:
            if self.builder.block.is_terminated:
                return
            handler = getattr(self, f"run_{type(node).__name__.lower()}", None)
            if handler is None:
                raise UnsupportedError(type(node).__name__)
            handler(node)

    def run_expr(self, node: Any) -> None:
        """Emit an expression whose value is not used, or skip a docstring."""
        if not isinstance(node.value, ast.Constant):
            self.value(node.value)

    def run_pass(self, node: Any) -> None:
        """Emit nothing."""

    def run_return(self, node: Any) -> None:
        """Emit a return."""
        self.return_value(Value(types.none, self.context.get_dummy_value()) if node.value is None else self.value(node.value))

    def return_value(self, value: Value) -> None:
        """Emit the return of a value; the first sets the result's type."""
        value = self.plain(value)
        if self.front.result is None:
            self.front.result = value.type
            if value.type != types.none:
                raise _RetypedError
        if value.type != self.front.result:
            self.front.result = self.common(self.front.result, value.type)
            if self.front.result != self.described.restype:
                raise _RetypedError
        returned = self.context.get_return_value(self.builder, self.front.result, self.cast(value, self.front.result))
        self.context.call_conv.return_value(self.builder, returned)

    def run_assign(self, node: Any) -> None:
        """Emit an assignment to one or several targets."""
        value = self.value(node.value)
        for target in node.targets:
            self.assign(target, value)

    def run_annassign(self, node: Any) -> None:
        """Emit an annotated assignment."""
        if node.value is not None:
            self.assign(node.target, self.value(node.value))

    def run_augassign(self, node: Any) -> None:
        """Emit an augmented assignment."""
        target = node.target
        if isinstance(target, ast.Name):
            self.store(target.id, self.binary(node.op, self.value(ast.Name(target.id, ast.Load())), self.value(node.value)))
        elif isinstance(target, ast.Attribute):
            base = self.value(target.value)
            self.set_attribute(base, target.attr, self.binary(node.op, self.attribute(base, target.attr), self.value(node.value)))
        else:
            base, index = self.value(target.value), self.value(target.slice)
            self.set_item(base, index, self.binary(node.op, self.item(base, index), self.value(node.value)))

    def assign(self, target: Any, value: Value) -> None:
        """Emit the assignment of a value to a target."""
        if isinstance(target, ast.Name):
            self.store(target.id, value)
        elif isinstance(target, ast.Attribute):
            self.set_attribute(self.value(target.value), target.attr, value)
        elif isinstance(target, ast.Subscript):
            self.set_item(self.value(target.value), self.value(target.slice), value)
        elif isinstance(target, ast.Tuple) and isinstance(value.type, types.BaseTuple) and len(target.elts) == len(value.type):
            parts = cgutils.unpack_tuple(self.builder, value.of)
            for each, of, part in zip(target.elts, value.type, parts, strict=True):
                self.assign(each, Value(of, part))
        else:
            raise UnsupportedError(ast.dump(target))

    def store(self, name: str, value: Value) -> None:
        """Emit the store into a variable, whose type must fit all its values."""
        value = self.plain(value)
        of = self.front.types.setdefault(name, value.type)
        if of != value.type:
            common = self.common(of, value.type)
            if common != of:
                self.front.types[name] = common
                raise _RetypedError
        place = self.places.get(name)
        if place is None:
            place = self.places[name] = cgutils.alloca_once(self.builder, self.context.get_value_type(of), name=name)
        self.builder.store(self.cast(value, of), place)

    def set_attribute(self, base: Value, name: str, value: Value) -> None:
        """Emit the store of a field."""
        value = self.plain(value)
        signature = self.typing.resolve_setattr(base.type, name, value.type)
        if signature is None:
            raise UnsupportedError(f"field {name} of {base.type}")
        emit = self.context.get_setattr(name, signature)
        emit(self.builder, (base.of, self.cast(value, signature.args[1])))

    def set_item(self, base: Value, index: Value, value: Value) -> None:
        """Emit the store of an element."""
        if isinstance(base.type, types.CPointer) and isinstance(base.type.dtype, types.Integer):
            at = self.builder.gep(base.of, [self.integer(index)])
            self.builder.store(self.cast(value, base.type.dtype), at)
            return
        self.call_operator(operator.setitem, [base, index, value])

    def run_if(self, node: Any) -> None:
        """Emit one of two branches."""
        then, after = self.new_block("then"), self.new_block("after")
        other = self.new_block("else") if node.orelse else after
        self.branch(node.test, then, other)
        self.builder.position_at_end(then)
        self.run_all(node.body)
        self.go(after)
        if node.orelse:
            self.builder.position_at_end(other)
            self.run_all(node.orelse)
            self.go(after)
        self.builder.position_at_end(after)

    def run_while(self, node: Any) -> None:
        """Emit a `while` loop."""
        test, body, after = self.new_block("test"), self.new_block("body"), self.new_block("after")
        self.go(test)
        self.builder.position_at_end(test)
        self.branch(node.test, body, after)
        with self.loop(body, test, after, node):
            self.run_all(node.body)

    @contextmanager
    def loop(self, body: Any, again: Any, after: Any, node: Any) -> Iterator[None]:
        """Emit the body of a loop."""
        if node.orelse:
            raise UnsupportedError("else of a loop")
        self.builder.position_at_end(body)
        self.loops.append((again, after))
        yield
        self.loops.pop()
        self.go(again)
        self.builder.position_at_end(after)

    def run_continue(self, node: Any) -> None:
        """Emit a `continue`."""
        self.builder.branch(self.loops[-1][0])

    def run_break(self, node: Any) -> None:
        """Emit a `break`."""
        self.builder.branch(self.loops[-1][1])

    def run_for(self, node: Any) -> None:
        """Emit a loop over a range or over a tuple of constants."""
        over = node.iter
        if isinstance(over, ast.Tuple):
            self.run_each(node, over.elts)
            return
        if not (isinstance(over, ast.Call) and self.is_builtin(over.func, "range") and isinstance(node.target, ast.Name)):
            raise UnsupportedError("a loop over something else")
        bounds = [self.value(each) for each in over.args]
        first, end = (Value(types.int64, I64(0)), bounds[0]) if len(bounds) == 1 else bounds[:2]
        step = bounds[2] if len(bounds) > 2 else Value(types.literal(1), I64(1))
        builder, last, by = self.builder, self.integer(end), self.integer(step)
        counter = cgutils.alloca_once(builder, I64)
        builder.store(self.integer(first), counter)
        test, body, after, again = (self.new_block(name) for name in ("test", "body", "after", "again"))
        self.go(test)
        builder.position_at_end(test)
        at = builder.load(counter)
        if isinstance(step.type, types.IntegerLiteral):
            goes_on = builder.icmp_signed("<" if step.type.literal_value > 0 else ">", at, last)
        else:
            up = builder.icmp_signed(">", by, I64(0))
            goes_on = builder.select(up, builder.icmp_signed("<", at, last), builder.icmp_signed(">", at, last))
        builder.cbranch(goes_on, body, after)
        with self.loop(body, again, after, node):
            self.store(node.target.id, Value(types.int64, at))
            self.run_all(node.body)
        builder.position_at_end(again)
        builder.store(builder.add(builder.load(counter), by, flags=("nsw",)), counter)
        builder.branch(test)
        builder.position_at_end(after)

    def run_each(self, node: Any, each: list[Any]) -> None:
        """Emit the body once for each item of a tuple."""
        after = self.new_block("after")
        for value in each:
            body, following = self.new_block("body"), self.new_block("next")
            self.assign(node.target, self.value(value))
            self.go(body)
            with self.loop(body, following, after, node):
                self.run_all(node.body)
            self.builder.position_at_end(following)
        self.go(after)
        self.builder.position_at_end(after)

    def new_block(self, name: str) -> Any:
        """Return a new basic block."""
        return self.function.append_basic_block(name)

    def go(self, block: Any) -> None:
        """Emit a jump to a basic block, unless the code has ended with another."""
        if not self.builder.block.is_terminated:
            self.builder.branch(block)

    def branch(self, node: Any, yes: Any, no: Any) -> None:
        """Emit a branch; of `and` and `or` the second operand is tested only if the first does not decide."""
        if isinstance(node, ast.BoolOp):
            for each in node.values[:-1]:
                rest = self.new_block("rest")
                self.branch(each, *((rest, no) if isinstance(node.op, ast.And) else (yes, rest)))
                self.builder.position_at_end(rest)
            self.branch(node.values[-1], yes, no)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self.branch(node.operand, no, yes)
        else:
            value = self.value(node)
            if isinstance(value.type, types.Literal) and isinstance(value.type.literal_value, (int, bool)):
                self.builder.branch(yes if value.type.literal_value else no)
            else:
                self.builder.cbranch(self.truth(value), yes, no)

    # --- Expressions ---

    def value(self, node: Any) -> Value:
        """Emit an expression."""
        handler = getattr(self, f"value_{type(node).__name__.lower()}", None)
        if handler is None:
            raise UnsupportedError(type(node).__name__)
        return handler(node)  # type: ignore[no-any-return]  # found by name

    def value_constant(self, node: Any) -> Value:
        """Emit a constant."""
        return self.constant(node.value)

    def constant(self, value: Any) -> Value:
        """Return a value that Python has before the kernel runs: a number, or an object that can only be called or passed on."""
        if isinstance(value, (bool, np.bool_)):
            return Value(types.literal(bool(value)), I1(int(value)))
        if isinstance(value, (np.integer, int)):
            n, is_unsigned = int(value), isinstance(value, np.uint64)
            if not is_unsigned and not -(1 << 63) <= n < 1 << 63:
                raise UnsupportedError("a number beyond int64")
            return Value(types.uint64 if is_unsigned else types.literal(n) if isinstance(value, int) else types.int64, I64(n))
        if isinstance(value, float):
            return Value(types.float64, ir.Constant(ir.DoubleType(), value))
        if isinstance(value, str):
            return Value(types.literal(value), self.context.get_dummy_value())
        return Value(None, value)

    def value_name(self, node: Any) -> Value:
        """Emit a variable, or the value of a name around the kernel."""
        name = node.id
        if name in self.values:
            return self.values[name]
        if name in self.front.locals:
            if name not in self.places:
                raise UnsupportedError(f"{name} is read before it is set")
            return Value(self.front.types[name], self.builder.load(self.places[name]))
        for space in (self.front.free, self.front.function.__globals__, vars(builtins)):
            if name in space:
                return self.constant(space[name])
        raise UnsupportedError(f"no {name}")

    def value_attribute(self, node: Any) -> Value:
        """Emit a field, or an attribute of a module."""
        return self.attribute(self.value(node.value), node.attr)

    def attribute(self, base: Value, name: str) -> Value:
        """Emit the load of a field."""
        if base.type is None:
            if not isinstance(base.of, ModuleType):
                raise UnsupportedError(f"{name} of {base.of}")
            return self.constant(getattr(base.of, name))
        found = self.typing.resolve_getattr(base.type, name)
        if found is None:
            raise UnsupportedError(f"field {name} of {base.type}")
        emit = self.context.get_getattr(base.type, name)
        return self.plain(Value(found, emit(self.context, self.builder, base.type, base.of, name)))

    def value_subscript(self, node: Any) -> Value:
        """Emit a subscript."""
        return self.item(self.value(node.value), self.value(node.slice))

    def item(self, base: Value, index: Value) -> Value:
        """Emit the load of an element."""
        if isinstance(base.type, types.CPointer) and isinstance(base.type.dtype, types.Integer):
            at = self.builder.gep(base.of, [self.integer(index)])
            return self.plain(Value(base.type.dtype, self.builder.load(at)))
        if isinstance(base.type, types.BaseTuple) and isinstance(index.type, types.IntegerLiteral):
            k = index.type.literal_value
            return Value(base.type[k], self.builder.extract_value(base.of, k % len(base.type)))
        return self.call_operator(operator.getitem, [base, index])

    def value_tuple(self, node: Any) -> Value:
        """Emit a tuple."""
        return self.tuple_of([self.plain(self.value(each)) for each in node.elts])

    def tuple_of(self, values: list[Value]) -> Value:
        """Emit a tuple of values."""
        of = types.BaseTuple.from_types(tuple(each.type for each in values))
        return Value(of, self.context.make_tuple(self.builder, of, [each.of for each in values]))

    def value_unaryop(self, node: Any) -> Value:
        """Emit an operation on one value."""
        value, op = self.value(node.operand), node.op
        if isinstance(op, ast.Not):
            return Value(types.boolean, self.builder.not_(self.truth(value)))
        if isinstance(value.type, types.IntegerLiteral) and not isinstance(op, ast.UAdd):
            n = value.type.literal_value
            return self.constant(-n if isinstance(op, ast.USub) else ~n)
        if self.is_int(value) and isinstance(op, ast.USub):
            return Value(types.int64, self.builder.neg(self.integer(value)))
        if self.is_int(value) and isinstance(op, ast.Invert):
            return Value(types.int64, self.builder.not_(self.integer(value)))
        if isinstance(op, ast.USub):
            return self.call_operator(operator.neg, [value])
        raise UnsupportedError(type(op).__name__)

    def value_binop(self, node: Any) -> Value:
        """Emit an operation on two expressions."""
        return self.binary(node.op, self.value(node.left), self.value(node.right))

    def binary(self, op: Any, a: Value, b: Value) -> Value:
        """Emit an operation on two values."""
        kind = type(op)
        if isinstance(a.type, types.IntegerLiteral) and isinstance(b.type, types.IntegerLiteral) and kind in EMIT:
            return self.constant(OPERATORS[kind](a.type.literal_value, b.type.literal_value))
        if isinstance(a.type, BOOLEANS) and isinstance(b.type, BOOLEANS) and kind in (ast.BitAnd, ast.BitOr, ast.BitXor):
            return Value(types.boolean, EMIT[kind](self.builder, a.of, b.of))
        if self.is_int(a) and self.is_int(b) and kind in EMIT:
            return Value(types.int64, EMIT[kind](self.builder, self.integer(a), self.integer(b)))
        if kind not in OPERATORS:
            raise UnsupportedError(kind.__name__)
        return self.call_operator(OPERATORS[kind], [a, b])

    def value_compare(self, node: Any) -> Value:
        """Emit one comparison or a chain."""
        left, found = self.value(node.left), []
        if len(node.ops) == 1:
            return self.compare(node.ops[0], left, self.value(node.comparators[0]))
        after, start = self.new_block("after"), []
        for op, each in zip(node.ops, node.comparators, strict=True):
            right = self.value(each)
            found.append(self.compare(op, left, right).of)
            start.append(self.builder.block)
            left = right
            if len(found) < len(node.ops):
                rest = self.new_block("rest")
                self.builder.cbranch(found[-1], rest, after)
                self.builder.position_at_end(rest)
        self.builder.branch(after)
        self.builder.position_at_end(after)
        answer = self.builder.phi(I1)
        for value, block in zip(found, start, strict=True):
            answer.add_incoming(value if block is start[-1] else I1(0), block)
        return Value(types.boolean, answer)

    def compare(self, op: Any, a: Value, b: Value) -> Value:
        """Emit the comparison of two values."""
        if type(op) not in COMPARE:
            raise UnsupportedError(type(op).__name__)
        sign = COMPARE[type(op)]
        if isinstance(a.type, types.IntegerLiteral) and isinstance(b.type, types.IntegerLiteral):
            return self.constant(OPERATORS[type(op)](a.type.literal_value, b.type.literal_value))
        if a.type == types.uint64 and b.type == types.uint64:
            return Value(types.boolean, self.builder.icmp_unsigned(sign, a.of, b.of))
        if self.is_int(a) and self.is_int(b):
            return Value(types.boolean, self.builder.icmp_signed(sign, self.integer(a), self.integer(b)))
        return self.call_operator(OPERATORS[type(op)], [a, b])

    def value_boolop(self, node: Any) -> Value:
        """Emit `and` or `or` of booleans."""
        is_and = isinstance(node.op, ast.And)
        after, arms = self.new_block("after"), []
        for each in node.values:
            value = self.value(each)
            if not isinstance(value.type, BOOLEANS):
                raise UnsupportedError("`and` of what is no boolean")
            arms.append((value.of, self.builder.block))
            if each is not node.values[-1]:
                rest = self.new_block("rest")
                self.builder.cbranch(value.of, *((rest, after) if is_and else (after, rest)))
                self.builder.position_at_end(rest)
        self.builder.branch(after)
        self.builder.position_at_end(after)
        answer = self.builder.phi(I1)
        for found, block in arms:
            answer.add_incoming(found if block is arms[-1][1] else I1(not is_and), block)
        return Value(types.boolean, answer)

    def value_ifexp(self, node: Any) -> Value:
        """Emit one of two values."""
        blocks = then, other, after = self.new_block("then"), self.new_block("else"), self.new_block("after")
        self.branch(node.test, then, other)
        found = []
        for block, each in zip(blocks, (node.body, node.orelse), strict=False):
            self.builder.position_at_end(block)
            found.append((self.plain(self.value(each)), self.builder.block))
        of = self.common(found[0][0].type, found[1][0].type)
        arms = []
        for value, block in found:
            self.builder.position_at_end(block)
            arms.append((self.cast(value, of), self.builder.block))
            self.builder.branch(after)
        self.builder.position_at_end(after)
        answer = self.builder.phi(self.context.get_value_type(of))
        for each, block in arms:
            answer.add_incoming(each, block)
        return Value(of, answer)

    # --- Calls ---

    def value_call(self, node: Any) -> Value:
        """Emit a call."""
        called = self.value(node.func)
        if called.type is not None or node.keywords:
            raise UnsupportedError("a call that is not plain")
        function, arguments = called.of, [self.value(each) for each in node.args]
        if isinstance(function, Dispatcher):
            return self.call_kernel(function, [self.passed(each) for each in arguments])
        if isinstance(function, _Intrinsic):
            return self.call_intrinsic(function, [self.passed(each, function._prefer_literal) for each in arguments])
        if isinstance(function, types.ExternalFunction):
            return self.call_c(function, arguments)
        if isinstance(function, type) and function in CASTS and len(arguments) == 1:
            return self.converted(arguments[0], CASTS[function])
        if function in (min, max) and len(arguments) > 1 and all(map(self.is_int, arguments)):
            least = self.integer(arguments[0])
            for each in arguments[1:]:
                other = self.integer(each)
                least = self.builder.select(self.builder.icmp_signed("<" if function is min else ">", other, least), other, least)
            return Value(types.int64, least)
        return self.call_operator(function, arguments)

    def converted(self, value: Value, of: Any) -> Value:
        """Emit the conversion of a number."""
        if of is types.boolean:
            return Value(types.boolean, self.truth(value))
        return Value(of, self.cast(value, of))

    def call_kernel(self, kernel: Any, arguments: list[Value]) -> Value:
        """Emit the call of another kernel."""
        wanted = tuple(each.type for each in arguments)
        if wanted not in kernel.overloads:
            kernel.compile(wanted)
        compiled = kernel.overloads[wanted]
        result = compiled.signature.return_type
        self.context.active_code_library.add_linking_library(compiled.library)
        values = [each.of for each in arguments]
        if isinstance(compiled.library, KernelLibrary):
            return Value(result, self.call_described(compiled.fndesc, result, values))
        return Value(result, self.context.call_internal(self.builder, compiled.fndesc, compiled.signature, values))

    def call_described(self, described: Any, result: Any, values: list[Any]) -> Any:
        """Emit a call by Numba's convention; the status is ignored, since kernels raise nothing."""
        builder, context = self.builder, self.context
        called = context.declare_function(self.module, described)
        of = called.function_type.args[0].pointee
        place = cgutils.alloca_once(builder, of)
        packed = context.call_conv._get_arg_packer(described.argtypes).as_arguments(builder, values)
        excinfo = called.function_type.args[1](None)
        builder.call(called, [place, excinfo, *packed])
        return context.get_returned_value(builder, result, builder.load(place))

    def call_intrinsic(self, intrinsic: Any, arguments: list[Value]) -> Value:
        """Emit an intrinsic."""
        defined = intrinsic._defn(self.typing, *(each.type for each in arguments))
        if defined is None:
            raise UnsupportedError(f"{intrinsic} of such arguments")
        signature, emit = defined
        values = [self.cast(each, of) for each, of in zip(arguments, signature.args, strict=True)]
        return self.plain(Value(signature.return_type, emit(self.context, self.builder, signature, values)))

    def call_c(self, function: Any, arguments: list[Value]) -> Value:
        """Emit the call of a C function."""
        signature = function.sig
        described = funcdesc.ExternalFunctionDescriptor(function.symbol, signature.return_type, signature.args)
        declared = self.context.declare_external_function(self.module, described)
        values = [self.cast(each, of) for each, of in zip(arguments, signature.args, strict=True)]
        answer = self.context.call_external_function(self.builder, declared, described.argtypes, values)
        return self.plain(Value(signature.return_type, answer))

    def call_operator(self, function: Any, arguments: list[Value]) -> Value:
        """Emit the call of a Python function that Numba knows."""
        arguments = [self.plain(each) for each in arguments]
        signature = _known(self.typing, function, tuple(each.type for each in arguments))
        emit = self.context.get_function(self.typing.resolve_value_type(function), signature)
        values = [self.cast(each, of) for each, of in zip(arguments, signature.args, strict=True)]
        return self.plain(Value(signature.return_type, emit(self.builder, values)))

    # --- Types ---

    def is_builtin(self, node: Any, name: str) -> bool:
        """Whether an expression is the name of a builtin."""
        return isinstance(node, ast.Name) and node.id == name and self.value(node).of is getattr(builtins, name)

    def is_int(self, value: Value) -> bool:
        """Whether a value can be an operand of int64 arithmetic."""
        return isinstance(value.type, (types.Integer, *BOOLEANS)) and value.type != types.uint64

    def integer(self, value: Value) -> Any:
        """Return a value as int64."""
        return self.cast(value, types.int64)

    def truth(self, value: Value) -> Any:
        """Return whether a value counts as true."""
        if isinstance(value.type, BOOLEANS):
            return value.of
        if isinstance(value.type, types.Integer):
            return self.builder.icmp_signed("!=", value.of, value.of.type(0))
        raise UnsupportedError(f"the truth of {value.type}")

    def plain(self, value: Value) -> Value:
        """Return a value as one that a variable can have: an integer is an int64."""
        of = value.type
        if of is None:
            raise UnsupportedError(f"{value.of} as a value")
        if isinstance(of, BOOLEANS):
            return Value(types.boolean, value.of)
        if isinstance(of, types.Integer) and of != types.uint64:
            return Value(types.int64, self.cast(value, types.int64))
        return Value(types.unliteral(of), value.of)

    def passed(self, value: Value, as_literal: bool = False) -> Value:
        """Return a value as an argument: a constant as a literal if that is wanted, a function as its Numba type."""
        if value.type is None:
            return Value(self.typing.resolve_value_type(value.of), self.context.get_dummy_value())
        return value if as_literal and isinstance(value.type, types.Literal) else self.plain(value)

    def common(self, a: Any, b: Any) -> Any:
        """Return the type that can hold values of both types."""
        if a == b:
            return a
        if all(isinstance(of, (types.Integer, types.Boolean)) and of != types.uint64 for of in (a, b)):
            return types.int64
        raise UnsupportedError(f"{a} and {b} in one place")

    def cast(self, value: Value, of: Any) -> Any:
        """Emit the conversion of a value to another type."""
        have = value.type
        if have == of or isinstance(of, types.Literal):
            return value.of
        if isinstance(have, (types.Integer, *BOOLEANS)) and isinstance(of, types.Integer):
            width, n = ir.IntType(of.bitwidth), value.of.type.width
            if isinstance(value.of, ir.Constant) and n == of.bitwidth:
                return value.of
            if n == of.bitwidth:
                return value.of
            if n > of.bitwidth:
                return self.builder.trunc(value.of, width)
            is_signed = isinstance(have, types.Integer) and have.signed
            return self.builder.sext(value.of, width) if is_signed else self.builder.zext(value.of, width)
        if have is None:
            raise UnsupportedError(f"{value.of} as a value")
        return self.context.cast(self.builder, value.of, have, of)


@cache
def _known(typing: Any, function: Any, args: tuple[Any, ...]) -> Any:
    """Return the signature of a Python function that Numba knows."""
    try:
        signature = typing.resolve_function_type(typing.resolve_value_type(function), args, {})
    except Exception as error:
        raise UnsupportedError(f"{function} of {args}") from error
    if signature is None:
        raise UnsupportedError(f"{function} of {args}")
    return signature
