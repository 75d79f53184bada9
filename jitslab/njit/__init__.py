"""What user code compiled by Numba sees."""
