"""
Kernels as modules of LLVM, and the libraries that they are linked into.

A kernel is kept as it was emitted.  An entry point is linked with all that it calls, optimised, and compiled to machine code,
once.  A kernel that user code calls is linked and optimised once; it becomes machine code within that user code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import binding as llvm
from numba.core.codegen import CodeLibrary, JITCodeLibrary


class KernelLibrary(JITCodeLibrary):  # type: ignore[misc]  # numba has no types
    """One kernel: to Numba, a library that is ready to be linked.  It never raises and has no machine code."""

    def __init__(self, codegen: Any, name: str, linked: bytes | None = None) -> None:
        CodeLibrary.__init__(self, codegen, name)
        self._finalized = True
        self._linking_libraries: list[Any] = []
        self._shared_module = None if linked is None else llvm.parse_bitcode(linked)
        self._final_module: Any = self._shared_module
        self.when_linked: Callable[[bytes], None] | None = None

    @property
    def is_emitted(self) -> bool:
        """Whether the kernel was emitted in this process; otherwise it was read from disk, with all that it calls."""
        return self._final_module is not self._shared_module

    def new_module(self) -> Any:
        """Return an empty module to emit into."""
        self._linking_libraries.clear()
        return self._codegen._create_empty_module(self.name)

    def add_ir_module(self, ir_module: Any) -> None:
        """Take the module that the kernel was emitted into."""
        self._final_module = llvm.parse_assembly(str(ir_module))
        self._finalize_dynamic_globals()

    def _get_module_for_linking(self) -> Any:
        """Return the kernel with all that it calls, optimised."""
        if self._shared_module is None:
            module = self._final_module.clone()
            for each in dict.fromkeys(self._linking_libraries):
                module.link_in(each._get_module_for_linking(), preserve=True)
            optimise(self._codegen, module)
            for each in module.functions:
                if not each.is_declaration and each.linkage == llvm.Linkage.external:
                    each.linkage = "linkonce_odr"
            self._shared_module = module
            if self.when_linked is not None:
                self.when_linked(module.as_bitcode())
        return self._shared_module


class EntryLibrary(JITCodeLibrary):  # type: ignore[misc]  # numba has no types
    """C functions, as machine code."""

    def __init__(self, codegen: Any, name: str, code: bytes | None = None) -> None:
        super().__init__(codegen, name)
        self.is_from_disk = code is not None
        self.enable_object_caching()
        if code is not None:
            self._set_compiled_object(code)

    def link(self, kernels: Iterable[KernelLibrary], names: set[str]) -> None:
        """
        Take the C functions of some names from the modules of kernels, and all that they call.

        All other functions become private: LLVM may change their signatures here, and must not find them for other code.
        """
        link(kernels, self._final_module)
        for each in self._final_module.functions:
            if not each.is_declaration and each.name not in names:
                each.linkage = "private"
        optimise(self._codegen, self._final_module)

    def addresses_of(self, names: Iterable[str]) -> dict[str, int]:
        """Compile the C functions to machine code and return their addresses."""
        engine = self._codegen._engine
        self._finalize_final_module()
        engine._defined_symbols.update(names)
        return {name: int(engine.get_function_address(name)) for name in names}

    @property
    def code(self) -> bytes:
        """The machine code, for `__init__`."""
        return bytes(self._get_compiled_object())


def link(libraries: Iterable[Any], module: Any) -> None:
    """Link kernels, and all that they call, into a module."""
    todo, seen = list(libraries), set()
    while todo:
        each = todo.pop()
        if each in seen:
            continue
        seen.add(each)
        if isinstance(each, KernelLibrary) and each.is_emitted:
            todo += each._linking_libraries
            module.link_in(each._final_module, preserve=True)
        else:
            module.link_in(each._get_module_for_linking(), preserve=True)


def optimise(codegen: Any, module: Any) -> None:
    """Optimise a module as Numba does."""
    cheap = {"loop_vectorize": codegen._loopvect, "slp_vectorize": False, "opt": codegen._opt_level, "cost": "cheap"}
    for options in cheap, {}:
        passes, builder = codegen._module_pass_manager(**options)
        passes.run(module, builder)
    module.verify()
