"""The layers of the package: an import never climbs, never runs in a circle, and takes no other module's private name."""

import ast
from pathlib import Path

import pytest

import jitslab

PACKAGE = Path(jitslab.__file__).parent
LAYERS = (  # from the lowest; a folder's name stands for its modules
    ("errors",),
    ("machine",),  # what Numba, the CPU and the system can do: knows no slab
    ("core",),  # one cache, as kernels: knows no object of Python that is ours
    ("_faults", "_closable", "_names", "_validate", "_convert", "_terminal", "links", "descriptor", "views"),
    ("njit",),
    (
        "guard",
        "owning",
        "batch_guard",
        "guard_class",
        "declare",
        "record_class",
        "reach",
        "image",
        "cache",
        "ptr",
    ),  # the typed face
    ("sizes",),
    ("pool",),
    ("allocator", "manager"),
    ("replay",),
    ("cli",),
    ("__init__", "__main__"),
    ("examples",),  # a user's programs
)


def name_of(path):
    """Return the dotted name of a module within the package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.parent == PACKAGE or path.stem != "__init__"}


def imports_of(name):
    """Return (module, name) of all that a module imports from the package, also within functions."""
    folder = name.split(".")[:-1]
    found = []
    tree = ast.parse(MODULES[name].read_text())
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*folder[: len(folder) - node.level + 1], *(node.module or "").split(".")]
            base = ".".join(filter(None, base))
            for each in node.names:
                whole = f"{base}.{each.name}".lstrip(".")
                found.append((whole, None) if whole in MODULES else (base or "__init__", each.name))
    return found


def layer(name):
    """Return the number of a module's layer."""
    return next(number for number, names in enumerate(LAYERS) if name.split(".")[0] in names)


@pytest.mark.parametrize("name", MODULES)
def test_import_does_not_climb(name):
    """A module imports its own layer and lower ones."""
    assert [] == [of for of, _ in imports_of(name) if of != "__init__" and layer(of) > layer(name)]


@pytest.mark.parametrize("name", MODULES)
def test_private_names_stay_in_their_module(name):
    """A name that begins with one underscore is its module's own; modules of that kind are the package's."""
    tree = ast.parse(MODULES[name].read_text())
    modules = {each.asname or each.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for each in node.names}
    uses = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name))
    ours = {of.rpartition(".")[2] for of, what in imports_of(name) if what is None}
    taken = [what for _, what in imports_of(name) if what is not None and what.startswith("_") and not what.startswith("__")]

    assert [] == taken
    assert [] == [use.attr for use in uses if use.value.id in modules & ours and use.attr.startswith("_")]


def test_imports_run_in_no_circle():
    """Each module can be imported after those that it imports."""
    done, left = {"__init__"}, {name: {of for of, _ in imports_of(name)} for name in MODULES}
    while ready := {name for name, needs in left.items() if needs - {name} <= done}:
        done |= ready
        left = {name: needs for name, needs in left.items() if name not in ready}

    assert left == {}
