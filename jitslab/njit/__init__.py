"""Caches in user code that Numba compiles."""
