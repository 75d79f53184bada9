"""What Numba, the CPU and the system can do; nothing here knows of slabs."""
