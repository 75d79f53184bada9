"""Pools: caches whose records are in files, atomic at every commit."""
