"""Records declared as classes, and links: what becomes of annotations, what is refused by name, what type checkers see."""

import abc
import ctypes
import dataclasses
import pickle
import sys
import types
import typing
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import numba
import numpy as np
import numpy.typing as npt
import pytest
import typed

import jitslab
from jitslab import link, links_of
from jitslab._validate import check_dtype

NODE = np.dtype([("value", "f8"), ("next", link("nodes"))])


# --- Declared classes ---


def test_declared_class_stands_for_its_dtype():
    """NumPy, the check of dtypes and caches take the class; fields are aligned, in the order of the annotations."""
    expected = np.dtype(
        [
            ("value", "f8"),
            ("flags", "u1"),
            ("next", "i8"),
            ("data", "f4", (3,)),
            ("at", np.dtype([("x", "f8"), ("y", "f8")], align=True)),
        ],
        align=True,
    )

    assert expected == typed.Node.dtype == np.dtype(typed.Node) == check_dtype(typed.Node)
    assert np.dtype(typed.Node).isalignedstruct
    assert 16 == np.dtype(typed.Node).fields["next"][1]
    assert (2,) == np.zeros(2, typed.Node).shape
    with jitslab.SlabCache("declared", typed.Node, capacity=4) as cache:
        assert expected == cache.dtype


def test_guards_are_of_the_class_and_have_its_methods():
    """Methods and properties of the class work on guards; so do those of a nested class on views."""

    @jitslab.record
    class Counter:
        """Counts."""

        n: jitslab.u4
        at: typed.Point
        limit: ClassVar[int] = 3

        def up(self, by=1):
            """Count."""
            self.n += by
            return self.n

        @property
        def is_full(self):
            """Whether the limit is reached."""
            return self.n >= self.limit

        @property
        def broken(self):
            """Fails."""
            return self.m

    with jitslab.SlabCache("counters", Counter, capacity=4, init="zero") as cache:
        with cache.allocate() as counter:
            assert isinstance(counter, Counter)
            assert isinstance(counter, jitslab.SlabObjectGuard)
            assert isinstance(counter.at, typed.Point)
            assert (2, False) == (counter.up(2), counter.is_full)
            assert (3, True) == (counter.up(), counter.is_full)
            counter.at.x, counter.at.y = 3, 4
            assert 5.0 == counter.at.norm()
            assert "<Counter of 'counters': n=3, at=(x=3.0, y=4.0)>" == repr(counter)
            assert "<Point .at: x=3.0, y=4.0>" == repr(counter.at)
            with pytest.raises(jitslab.FieldNameError, match=r"^the record has no field 'limits'; it has 'n', 'at'$"):
                counter.limits = 3
            with pytest.raises(jitslab.FieldNameError, match=r"^'up' is a name of the guard itself, and the record has no such "):
                counter.up = 3
            with pytest.raises(AttributeError, match=r"(^the record has no field|object has no attribute) 'm'"):  # not 'broken'
                counter.broken
        assert 0 == len(cache)
        with cache.allocate_many(2) as batch:
            batch.n = 4
            assert [4, 4] == batch.n.tolist()
    assert ("Counter", "Counts.") == (Counter.__name__, Counter.__doc__)


def test_every_alias_is_what_it_is_named():
    """jitslab.u1 is NumPy's u1, and what Python makes of it."""
    for name in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", "b1"):
        cls = jitslab.record(type("Alias", (), {"__annotations__": {"it": getattr(jitslab, name)}}))

        assert np.dtype([("it", name)]) == cls.dtype


def test_annotations_of_every_sort():
    """Python's own types, NumPy's scalars, dtypes, Annotated with whatever NumPy takes."""

    @jitslab.record
    class All:
        a: bool
        b: int
        c: float
        d: complex
        e: np.float32
        f: Annotated[bytes, "S5"]
        g: Annotated[str, "U3"]
        h: Annotated[np.datetime64, "M8[ns]"]
        i: Annotated[npt.NDArray[np.int16], ("i2", (2, 3))]
        j: Annotated[Any, (typed.Point, (2,))]
        k: Annotated[Any, np.dtype([("x", "i4")])]
        m: Annotated[int, link("nodes"), "further words are for others"]

    formats = ["?", "i8", "f8", "c16", "f4", "S5", "U3", "M8[ns]", ("i2", (2, 3)), (typed.Point.dtype, (2,)), [("x", "i4")], "i8"]
    assert np.dtype(list(zip("abcdefghijkm", formats, strict=True)), align=True) == All.dtype
    assert {("m",): "nodes"} == links_of(All)


def test_inherited_fields_come_first():
    """A declared class may be inherited from."""

    @jitslab.record
    class Solid(typed.Point):
        z: jitslab.f8

        def norm(self):
            """With z."""
            return (self.x**2 + self.y**2 + self.z**2) ** 0.5

    assert ("x", "y", "z") == Solid.dtype.names
    with jitslab.SlabCache("solids", Solid, capacity=4) as cache, cache.allocate() as it:
        it.x, it.y, it.z = 1, 2, 2
        assert 3.0 == it.norm()
        assert isinstance(it, typed.Point)


def test_class_that_only_inherits_is_refused():
    """Its guards would lack what it adds: it is to be declared, too, with further fields or without."""

    class Sub(typed.Point):
        def twice(self):
            return 2 * self.x

    with pytest.raises(jitslab.LayoutError) as caught:
        jitslab.SlabCache("subs", Sub, capacity=4)
    assert "Sub inherits from a declared record; decorate it with jitslab.record, too" == str(caught.value)
    with jitslab.SlabCache("subs", jitslab.record(Sub), capacity=4) as cache, cache.allocate() as it:
        it.x = 4
        assert 8.0 == it.twice()


def test_strings_as_annotations_are_evaluated():
    """As after ``from __future__ import annotations``, with local names."""
    local = typed.Point

    @jitslab.record
    class Late:
        at: "local"
        n: "jitslab.i4"

    assert np.dtype([("at", local), ("n", "i4")], align=True) == Late.dtype


def test_declared_class_is_used_in_compiled_code():
    """Numba sees the dtype."""

    @numba.njit
    def push(nodes, head, value):
        h = nodes.alloc()
        nodes[h].value = value
        nodes[h].next = head
        nodes[h].at.x = 2 * value
        return h

    with jitslab.SlabCache("nodes", typed.Node, capacity=4) as nodes:
        h = push(nodes, push(nodes, 0, 1.0), 2.0)
        with nodes.adopt(h) as node, nodes.adopt(node.next) as last:
            assert (2.0, 4.0, 1.0, 0) == (node.value, node.at.x, last.value, last.next)


MODULE = """
from typing import Annotated, ClassVar, Generic, TypeVar
import jitslab

T = TypeVar("T")
Small = jitslab.i4

@jitslab.record
class Point(Generic[T]):
    limit: ClassVar[int] = 3
    Wide = jitslab.f8
    x: Wide
    n: Small

@jitslab.record
class Pair:
    first: Point
    second: Point[int]
"""


def loaded(source, how):
    """Return the names that a source makes, without its module in `sys.modules`, or with another one there by its name."""
    if how == "importlib":
        module = types.ModuleType("plugin_of_mine")
        exec(compile(source, "plugin_of_mine.py", "exec", dont_inherit=True), vars(module))
        return vars(module)
    names = {"no name": {}, "of a cell": {"__name__": "cell"}, "of another": {"__name__": "json"}}[how]
    exec(compile(source, "cell", "exec", dont_inherit=True), names)
    return names


@pytest.mark.parametrize("late", ["", "from __future__ import annotations\n"], ids=["", "late"])
@pytest.mark.parametrize("how", ["importlib", "no name", "of a cell", "of another"])
def test_record_is_declared_in_any_module(how, late):
    """Plugins and notebooks run code whose module nothing has entered, or another by that name; annotations are found there."""
    names = loaded(late + MODULE, how)

    point = np.dtype([("x", "f8"), ("n", "i4")], align=True)
    assert point == names["Point"].dtype
    assert np.dtype([("first", point), ("second", point)], align=True) == names["Pair"].dtype
    with jitslab.SlabCache("pairs", names["Pair"], capacity=4, init="zero") as cache, cache.allocate() as pair:
        pair.second.n = 5
        assert (3, 5, True) == (pair.first.limit, pair.second.n, isinstance(pair.second, names["Point"]))


LOCAL = """
from __future__ import annotations
import jitslab

def record(cls):
    return jitslab.record(cls)

def outer(Wide):
    def inner(Small):
        {decorator}
        class Point:
            Own = jitslab.u1
            x: Wide
            n: Small
            k: Own
        return Point
    return inner(jitslab.i4)

class Around:
    Wide = jitslab.f8
    Small = jitslab.i4

    {decorator}
    class Point:
        Own = jitslab.u1
        x: Wide
        n: Small
        k: Own

made = outer(jitslab.f8), Around.Point
"""


@pytest.mark.parametrize("how", ["importlib", "no name"])
@pytest.mark.parametrize("decorator", ["@jitslab.record", "@record", "@elsewhere", "@jitslab.record\n@elsewhere_nothing"])
def test_late_annotations_of_local_classes_are_found(decorator, how):
    """In the functions and classes around them, and in the class; whether a decorator of another module stands between or not."""
    prepare = "elsewhere = __import__('typed').declare\nelsewhere_nothing = lambda cls: cls\n"
    source = LOCAL.replace("import jitslab", f"import jitslab\n{prepare}", 1)
    indented = [
        line.replace("{decorator}", decorator.replace("\n", "\n" + line[: len(line) - len(line.lstrip())]))
        for line in source.splitlines()
    ]
    for made in loaded("\n".join(indented), how)["made"]:
        assert np.dtype([("x", "f8"), ("n", "i4"), ("k", "u1")], align=True) == made.dtype


def test_what_a_late_annotation_names_and_nothing_has_is_said():
    """Such as a local of a function that has ended."""
    source = "from __future__ import annotations\nimport jitslab\n@jitslab.record\nclass Lost:\n    x: jitslab.f8\n    y: Gone\n"
    for how in ("importlib", "no name"):
        with pytest.raises(jitslab.LayoutError, match="^field 'y' of Lost: name 'Gone' is not defined"):
            loaded(source, how)


def test_methods_that_guards_would_hide_are_refused_in_any_module():
    """A module without a name says it is builtins, whose classes have no methods of a user's."""
    source = "import jitslab\n@jitslab.record\nclass Taken:\n    n: jitslab.i4\n    def free(self): pass\n"
    for how in ("importlib", "no name", "of a cell"):
        with pytest.raises(jitslab.LayoutError, match="^method 'free' of Taken would be hidden"):
            loaded(source, how)


def test_class_with_parameters_stands_for_the_class():
    """``Box[int]`` is to a type checker another type, and of the same records: in caches, allocators and annotations."""

    @jitslab.record
    class Box(Generic[T]):
        n: jitslab.i4

        def twice(self):
            return 2 * self.n

    @jitslab.record
    class Boxes:
        one: Box[int]
        many: Annotated[Any, (Box, (2,))]

    with jitslab.SlabAllocator("boxes") as boxes, jitslab.SlabCache("pairs", Boxes, capacity=4, init="zero") as pairs:
        for made in (
            jitslab.SlabCache("boxes", Box[int], capacity=4),
            boxes.typed(Box[int]),
            boxes.create_cache("own", Box[str]),
        ):
            with made.allocate() as box:
                box.n = 4
                assert 8 == box.twice()
        assert boxes.typed(Box) is boxes.typed(Box[int])
        boxes.free_typed(int(boxes.allocate_typed(Box)), Box[int])
        with pairs.allocate() as pair:
            pair.one.n = 3
            assert 6 == pair.one.twice()


def declare(_bases=(), _name="Bad", **annotations):
    """Declare a class with these annotations."""
    return jitslab.record(type(_name, _bases, {"__annotations__": annotations, "__module__": __name__}))


class Loose:
    """A base whose objects have a __dict__."""


@jitslab.record
class Spot:
    """A nested record with a default."""

    x: jitslab.f8 = 0.5
    y: jitslab.f8


@jitslab.record
class Agent:
    """Defaults of all kinds."""

    energy: jitslab.f8 = 1.0
    id: jitslab.i8
    data: Annotated[Any, ("f4", (3,))] = (1, 2, 3)
    name: Annotated[bytes, "S4"] = b"ab"
    at: Spot
    home: Spot = (1.5, 2.5)

    def double(self):
        """Double the energy."""
        self.energy *= 2


@jitslab.record
class Bird(Agent):
    """Another default for a field of its base, and one of its own."""

    energy = 3.0
    wings: jitslab.u1 = 2


BORN = (1.0, 0, [1, 2, 3], b"ab", (0.5, 0.0), (1.5, 2.5))


def values(record):
    """Return the values of a record."""
    return tuple(
        part.tolist() if isinstance(part, (np.ndarray, np.void)) else part.item()
        for part in (record[n] for n in record.dtype.names)
    )


@pytest.mark.parametrize("init", [None, "zero"])
def test_defaults_are_what_records_begin_with(init):
    """In Python, in a guard, in compiled code, in many; fields without one, and slots that were in use, begin with zeros."""
    with jitslab.SlabCache("agents", Agent, capacity=10, init=init) as agents:
        agents[agents.alloc()] = (9, 9, 9, b"9999", (9, 9), (9, 9))
        agents.clear()
        compiled = numba.njit(lambda cache: (cache.alloc(), cache.new(id=5)[0]))(agents)
        for handle in (*compiled, agents.alloc(), *agents.alloc_many(2), agents.allocate(id=5).release()):
            record = agents[handle]
            assert values(record) == (1.0, record["id"], *BORN[2:])
            assert record["id"] in (0, 5)
        with agents.allocate(energy=4.0) as agent:
            agent.double()
            assert (agent.energy, agent.data.tolist(), agent.at.x) == (8.0, [1, 2, 3], 0.5)
        agents.check()
    with jitslab.SlabCache("birds", Bird, capacity=10, init=init) as birds, birds.allocate() as bird:
        assert values(bird.record) == (3.0, *BORN[1:], 2)


def test_record_given_as_init_counts_instead_of_the_defaults():
    """All of it; and an allocator's "zero" for all dtypes leaves the defaults."""
    init = (0.0, 1, (4, 5, 6), b"", (0, 0), (0, 0))
    with jitslab.SlabCache("agents", Agent, capacity=10, init=init) as agents:
        assert values(agents[agents.alloc()]) == (0.0, 1, [4, 5, 6], b"", (0.0, 0.0), (0.0, 0.0))
    with jitslab.SlabAllocator("zeros", init="zero") as allocator, allocator.allocate_object(Agent, id=2) as agent:
        assert values(agent.record) == (1.0, 2, *BORN[2:])
        assert allocator.typed(Agent, init=None) is allocator.typed(Agent, init="zero")
        with pytest.raises(jitslab.ConflictError, match="exists with another init"):
            allocator.typed(Agent, init=init)
    with jitslab.SlabCache("plain", Agent.dtype, capacity=10, init="zero") as plain:
        assert plain[plain.alloc()]["energy"] == 0.0


T = TypeVar("T")
BAD = {
    "no size": ({"tag": Annotated[bytes, "S"]}, "field 'tag' of Bad: |S0 has no size; write one, as in 'S8'"),
    "str": ({"tag": str}, "field 'tag' of Bad: no NumPy type in str; write Annotated[str, 'U8'] with the one you mean"),
    "list": ({"it": list}, "field 'it' of Bad: no NumPy type in list; write Annotated[list, 'f8'] with the one you mean"),
    "optional": ({"it": int | None}, None),
    "generic": ({"it": list[int]}, None),
    "object": ({"it": Annotated[Any, "O"]}, "field 'it' of Bad: a record cannot hold Python objects"),
    "np.object_": ({"it": np.object_}, "field 'it' of Bad: a record cannot hold Python objects"),
    "no such type": ({"it": Annotated[int, "no such"]}, None),
    "abstract": ({"it": np.number}, None),
    "undeclared": (
        {"it": Loose},
        "field 'it' of Bad: no NumPy type in Loose; write Annotated[Loose, 'f8'] with the one you mean",
    ),
    "unknown": ({"it": "nowhere.nothing"}, "field 'it' of Bad: name 'nowhere' is not defined"),
    "no text": ({"it": "1 +"}, None),
    "method": ({"free": jitslab.i4}, "field 'free' of Bad would hide what guards have by that name; rename it"),
    "record": ({"record": jitslab.i4}, "field 'record' of Bad would hide what guards have by that name; rename it"),
    "dtype": ({"dtype": jitslab.i4}, "field 'dtype' of Bad would hide what guards have by that name; rename it"),
    "private": ({"_it": jitslab.i4}, "field '_it' of Bad: names that begin with _ are not for fields"),
    "nothing": ({}, "Bad has no annotated fields"),
    "class variables only": ({"it": ClassVar[int]}, "Bad has no annotated fields"),
}


@pytest.mark.parametrize("crime", BAD)
def test_wrong_declaration_is_refused_by_name(crime):
    """What cannot be a field is refused when the class is made, with its name."""
    annotations, text = BAD[crime]

    with pytest.raises(jitslab.LayoutError) as caught:
        declare(**annotations)
    assert text is None or text == str(caught.value)
    assert str(caught.value).startswith("field 'it' of Bad: ") or text


def test_wrong_classes_are_refused():
    """Slots, bases with a __dict__, fields twice, defaults that do not fit, and what is no class."""
    for default, text in (
        (2.5, "takes an integer .*, got float 2.5"),
        (1 << 70, "takes an integer "),
        (property(), "takes an int"),
    ):
        with pytest.raises(jitslab.LayoutError, match=f"^default of field 'n' of Bad: field 'n' {text}"):
            jitslab.record(type("Bad", (), {"__annotations__": {"n": int}, "n": default}))
    with pytest.raises(jitslab.LayoutError, match=r"^Bad has __slots__; fields are what it annotates$"):
        jitslab.record(type("Bad", (), {"__annotations__": {"n": int}, "__slots__": ("m",)}))
    with pytest.raises(
        jitslab.LayoutError, match=r"^a base of Bad gives its objects a __dict__; give that base __slots__ = \(\)$"
    ):
        declare((Loose,), n=int)
    with pytest.raises(jitslab.LayoutError, match=r"^field 'x' of Bad is declared twice$"):
        declare((typed.Point,), x=int)
    with pytest.raises(jitslab.LayoutError, match=r"^record decorates a class, got int$"):
        jitslab.record(3)


def test_generic_class_may_be_declared():
    """Bases without a __dict__ are fine."""

    @jitslab.record
    class Box(Generic[T]):
        n: jitslab.i4

    assert ("n",) == Box.dtype.names
    with jitslab.SlabCache("boxes", Box, capacity=4) as cache, cache.allocate() as box:
        assert isinstance(box, Box)


def test_declared_class_has_no_instances():
    """Only guards and views are of it."""
    text = "Point declares a record; take one from a cache: SlabCache('name', Point).allocate()"

    with pytest.raises(jitslab.LayoutError) as caught:
        typed.Point()
    assert text == str(caught.value)


GUARDS_OWN = ["free", "release", "cache", "handle", "record", "_read", "__repr__", "__getitem__", "__setitem__", "__enter__"]
GUARDS_OWN += ["__exit__", "__setattr__", "__getattr__", "__del__", "__dir__", "__copy__", "__deepcopy__", "__reduce_ex__"]
GUARDS_OWN += ["__eq__", "__hash__", "__init__", "__new__", "__getattribute__", "__delattr__", "__class__"]


@pytest.mark.parametrize("name", GUARDS_OWN)
def test_method_that_guards_would_hide_is_refused(name):
    """It would never be called, or break what guards are; in the class and in its bases."""
    text = "would be hidden by what guards have by that name; rename it$"
    for method in (lambda self, *rest: 1, property(lambda self: 1)):
        declared = type("Taken", (), {"__annotations__": {"n": jitslab.i4}, name: method})
        with pytest.raises(jitslab.LayoutError, match=f"^method '{name}' of Taken {text}"):
            jitslab.record(declared)
        mixin = type("Mixin", (), {name: method, "__slots__": ()})
        with pytest.raises(jitslab.LayoutError, match=rf"^method '{name}' of Taken \(of its base Mixin\) {text}"):
            jitslab.record(type("Taken", (mixin,), {"__annotations__": {"n": jitslab.i4}}))


def test_other_special_methods_are_the_guards():
    """What guards do not have themselves, a class may add."""

    @jitslab.record
    class Sized:
        n: jitslab.i4

        def __len__(self):
            return self.n

        def __str__(self):
            return f"{self.n} long"

        def __lt__(self, other):
            return self.n < other.n

    with jitslab.SlabCache("sized", Sized, capacity=4) as cache, cache.allocate() as a, cache.allocate() as b:
        a.n, b.n = 3, 4
        assert (3, "3 long", True, False) == (len(a), str(a), a < b, b < a)


class Slotted:
    """Has room of its own."""

    __slots__ = ("room",)


class Abstract(abc.ABC):
    """Asks for a method."""

    __slots__ = ()

    @abc.abstractmethod
    def area(self):
        """Return the area."""


class Meta(type):
    """A metaclass that does not go with others."""

    def __new__(cls, name, bases, names, *, word):
        """Want a word."""
        return super().__new__(cls, name, bases, names)


class OfMeta(metaclass=Meta, word="a"):
    """Of a metaclass."""

    __slots__ = ()


BASES = {
    "slots": ((Slotted,), {}, "^guards cannot inherit from Odd: "),
    "a number": ((int,), {}, "^guards cannot inherit from Odd: "),
    "abstract": ((Abstract,), {}, "^Odd lacks what its base declares as abstract: area$"),
    "metaclass": ((OfMeta,), {"word": "b"}, "^guards cannot inherit from Odd: "),
    "tuple": ((tuple,), {}, "^Odd is a tuple; a record is a class of its own, without NamedTuple$"),
    "dict": ((dict,), {}, "^Odd is a dict; a record is a class of its own, without TypedDict$"),
}


@pytest.mark.parametrize("base", BASES)
def test_base_that_guards_cannot_have_is_refused(base):
    """When the class is declared, not when its first record is wanted."""
    bases, words, text = BASES[base]
    odd = types.new_class("Odd", bases, words, lambda names: names.update(__annotations__={"n": jitslab.i4}))
    with pytest.raises(jitslab.LayoutError, match=text):
        jitslab.record(odd)


def test_abstract_base_that_is_satisfied_is_fine():
    """Abstract methods are what a base asks for; here they are."""

    @jitslab.record
    class Square(Abstract):
        side: jitslab.f8

        def area(self):
            return self.side**2

    with jitslab.SlabCache("squares", Square, capacity=4) as cache, cache.allocate() as it:
        it.side = 3
        assert 9.0 == it.area()
        assert isinstance(it, Abstract)


def test_class_variables_in_text_are_no_fields():
    """As all annotations are after ``from __future__ import annotations``."""
    for text in ("ClassVar[int]", "ClassVar", "typing.ClassVar[int]"):
        annotations = {"limit": text, "n": "jitslab.i4", "at": "Annotated[int, 'i8']"}
        declared = jitslab.record(type("Text", (), {"__annotations__": annotations, "limit": 3, "__module__": __name__}))
        assert ("n", "at") == declared.dtype.names
        assert 3 == declared.limit


@pytest.mark.parametrize("code", ["i4", "S3"])
def test_field_named_as_what_only_classes_have(code):
    """A guard has no `mro`: a field of that name is an attribute."""
    value = {"i4": 5, "S3": b"ab"}[code]
    names = ["mro", "__name__"]
    with jitslab.SlabCache("mro", np.dtype([(name, code) for name in names]), capacity=4) as cache, cache.allocate() as it:
        it.mro = value
        assert value == it.mro == it["mro"] == it.record["mro"]
        with pytest.raises(jitslab.FieldNameError, match="^the record has no field 'mroo'; near it: 'mro'$"):
            it.mroo = 1
    declared = jitslab.record(type("Declared", (), {"__annotations__": {"mro": jitslab.i4}}))
    assert ("mro",) == declared.dtype.names


@pytest.mark.skipif(sys.version_info < (3, 12), reason="syntax of Python 3.12")
def test_parameters_and_aliases_of_python_3_12():
    """A class with type parameters, and an alias by ``type``, also where it is the dtype."""
    source = "import jitslab\ntype Wide = jitslab.f8\n@jitslab.record\nclass Box[T]:\n    x: Wide\n    n: jitslab.i4\n"
    source += "type Boxed = Box[int]\n"
    for late in ("", "from __future__ import annotations\n"):
        names = loaded(late + source, "no name")
        assert np.dtype([("x", "f8"), ("n", "i4")], align=True) == names["Box"].dtype
        with jitslab.SlabCache("boxes", names["Boxed"], capacity=4) as cache, cache.allocate() as box:
            assert isinstance(box, names["Box"])


# --- Classes that are something else ---


class Plain:
    """With annotations, not declared."""

    x: float
    n: int


@dataclasses.dataclass
class Data:
    """A dataclass."""

    x: float
    n: int


class Named(typing.NamedTuple):
    """A tuple."""

    x: float
    n: int


class Worded(typing.TypedDict):
    """A dict."""

    x: float
    n: int


class Coordinates(ctypes.Structure):
    """What NumPy knows the dtype of."""

    _fields_ = (("x", ctypes.c_double), ("n", ctypes.c_int))


class Pointing(ctypes.Structure):
    """With a pointer, of which it knows none."""

    _fields_ = (("x", ctypes.POINTER(ctypes.c_double)),)


class Overlapping(ctypes.Union):
    """Two in one place."""

    _fields_ = (("x", ctypes.c_double), ("n", ctypes.c_int))


@pytest.mark.parametrize("cls", [Plain, Data, Named, Worded], ids=lambda cls: cls.__name__)
def test_class_that_is_no_dtype_gets_advice_that_works(cls):
    """Also as a field in a list: its annotations under `jitslab.record`, and nothing else around them."""
    end = (
        f"class {cls.__name__} is no dtype; declare its annotations under @jitslab.record, in the place of dataclass, NamedTuple"
    )
    for dtype, start in ((cls, ": "), ([("n", "i4"), ("at", cls)], "; field 'at': ")):
        with pytest.raises(jitslab.LayoutError) as caught:
            jitslab.SlabCache("bad", dtype, capacity=4)
        assert str(caught.value) == f"a record cannot hold Python objects{start}{end} or TypedDict"
    declared = jitslab.record(type(cls.__name__, (), {"__annotations__": dict(cls.__annotations__)}))
    for dtype in (declared, [("n", "i4"), ("at", declared)]):
        jitslab.SlabCache("good", dtype, capacity=4).close()


def test_dataclass_and_record_exclude_each_other():
    """In either order: guards are equal to themselves only, and are made by caches."""
    with pytest.raises(jitslab.LayoutError, match="^Data is a dataclass; write @jitslab.record in the place of @dataclass$"):
        jitslab.record(Data)
    late = dataclasses.dataclass(jitslab.record(type("Late", (), {"__annotations__": {"x": float}})))
    text = "^Late got __eq__ after it was declared; write @jitslab.record without @dataclass$"
    with pytest.raises(jitslab.LayoutError, match=text):
        jitslab.SlabCache("late", late, capacity=4)


def test_structures_of_ctypes_are_dtypes_where_numpy_says_so():
    """Others are refused by what NumPy says, or as overlapping."""
    with jitslab.SlabCache("c", Coordinates, capacity=4, init="zero") as cache, cache.allocate() as it:
        it.x, it.n = 1.5, 3
        assert (1.5, 3) == (it.x, it.n)
    for cls, text in ((Pointing, "^not a dtype: "), (Overlapping, r"^fields overlap at byte 0 \('n'\)$")):
        with pytest.raises(jitslab.LayoutError, match=text):
            jitslab.SlabCache("bad", cls, capacity=4)
        with pytest.raises(jitslab.LayoutError, match=text.replace("'n'", "'at.n'")):
            jitslab.SlabCache("bad", [("at", cls)], capacity=4)


ADVISED = [int, float, bool, str, bytes, "f8", "S", "U0", "S3", "M8[s]", ">i4", ("f8", 3), ("f8", (2, 3)), ("S2", 2)]
ADVISED += [ctypes.c_int, ctypes.c_double * 3, np.float32, np.str_, None]


@pytest.mark.parametrize("dtype", ADVISED, ids=str)
def test_dtype_without_fields_gets_advice_that_works(dtype):
    """What the message says to write is taken, and is of that type."""
    with pytest.raises(jitslab.LayoutError) as caught:
        jitslab.SlabCache("bad", dtype, capacity=4)
    advised = eval(str(caught.value).split("; write ")[1])
    with jitslab.SlabCache("good", advised, capacity=4) as cache:
        assert np.dtype(dtype) == cache.dtype["value"] or 0 == np.dtype(dtype).itemsize


@pytest.mark.parametrize("of", [numba.float64, numba.int32, numba.boolean, numba.complex64, numba.uint8], ids=str)
def test_types_of_numba_get_the_names_of_numpys(of):
    """As in the specification of a jitclass."""
    with pytest.raises(jitslab.LayoutError, match=f"; field 'x': for Numba's {of} write '{of}'$"):
        jitslab.SlabCache("bad", [("n", "i4"), ("x", of)], capacity=4)
    jitslab.SlabCache("good", [("n", "i4"), ("x", str(of))], capacity=4).close()


def test_error_of_a_class_with_a_dtype_of_its_own_is_passed_on():
    """Whatever it raises."""

    class Odd:
        @property
        def dtype(self):
            raise KeyError("nothing here")

    with pytest.raises(jitslab.LayoutError, match="^not a dtype: "):
        jitslab.SlabCache("bad", Odd(), capacity=4)


# --- Links ---


def test_link_is_an_int64_that_remembers():
    """It compares as int64, and links are found at every depth."""
    deep = np.dtype([("id", "i4"), ("node", NODE), ("kids", link("kids"), (2, 3)), ("many", NODE, (4,))], align=True)

    assert np.dtype("i8") == link("nodes")
    assert {("next",): "nodes"} == links_of(NODE)
    assert {("node", "next"): "nodes", ("kids",): "kids", ("many", "next"): "nodes"} == links_of(deep)
    assert {} == links_of([("x", "f8")])
    assert {("next",): "nodes"} == links_of(typed.Node)


KEEPING = {
    "array": lambda d: np.zeros(3, d).dtype,
    "scalar": lambda d: np.zeros(3, d)[1].dtype,
    "copy": lambda d: np.zeros(3, d).copy().dtype,
    "dtype of dtype": lambda d: np.dtype(d, copy=True),
    "byte order": lambda d: d.newbyteorder("S").newbyteorder("S"),
    "selection": lambda d: np.zeros(3, d)[["next"]].dtype,
    "concatenate": lambda d: np.concatenate([np.zeros(3, d), np.zeros(1, d)]).dtype,
    "pickle": lambda d: pickle.loads(pickle.dumps(d)),
    "sub-array": lambda d: np.dtype((d, (3,))).base,
    "nested": lambda d: np.dtype([("it", d)], align=True)["it"],
    "cache": lambda d: jitslab.SlabCache("nodes", d, capacity=4).dtype,
    "gather": lambda d: (c := jitslab.SlabCache("nodes", d, capacity=4)).gather(c.alloc_many(2)).dtype,
}


@pytest.mark.parametrize("operation", KEEPING)
def test_link_is_kept(operation):
    """What NumPy does with dtypes and arrays hands the metadata on."""
    assert {("next",): "nodes"} == links_of(KEEPING[operation](NODE))


def test_file_of_numpy_drops_links_with_a_warning(tmp_path):
    """As the docstring of `link` says; a view without links is saved and loaded by every NumPy."""
    with pytest.warns(UserWarning, match="metadata"):
        np.save(tmp_path / "a.npy", np.zeros(3, NODE))
    plain = np.dtype([("value", "f8"), ("next", "i8")])
    np.save(tmp_path / "plain.npy", np.zeros(3, NODE).view(plain))

    assert plain == np.load(tmp_path / "plain.npy").dtype
    if np.lib.NumpyVersion(np.__version__) < "2.1.0":
        with pytest.raises(ValueError, match="invalid shape"):
            np.load(tmp_path / "a.npy")
    else:
        assert {} == links_of(np.load(tmp_path / "a.npy").dtype)


def test_numba_sees_a_plain_integer():
    """A link is an int64 in compiled code, in records of the same Numba type."""
    plain = np.dtype([("value", "f8"), ("next", "i8")])

    assert numba.from_dtype(plain) is numba.from_dtype(NODE) or numba.from_dtype(plain) == numba.from_dtype(NODE)
    assert numba.types.int64 == numba.from_dtype(NODE).typeof("next")


@pytest.mark.parametrize("name", ["", 3, None, b"nodes"])
def test_link_without_a_name_is_refused(name):
    """A cache is named by a string."""
    with pytest.raises(jitslab.LayoutError) as caught:
        link(name)
    assert f"a link names a cache by a string that is not empty, got {name!r}" == str(caught.value)


def test_links_of_what_is_no_record_are_refused():
    """As for any dtype of a cache."""
    with pytest.raises(jitslab.LayoutError):
        links_of("i8")


# --- Type checkers ---


def test_type_checker_sees_the_fields():
    """Mypy takes every line of `typed`, where wrong ones are marked as such."""
    api = pytest.importorskip("mypy.api")
    here = Path(__file__).parent
    options = ["--strict", "--config-file", str(here.parent / "pyproject.toml"), str(here / "typed.py")]
    out, err, status = api.run(options)

    assert (status, err) == (0, ""), out


def test_what_the_type_checker_sees_is_so():
    """The same lines run."""
    assert 1.0 == typed.plain()
    with pytest.raises(jitslab.FieldTypeError):
        typed.use()
