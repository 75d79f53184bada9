"""One cache, as kernels: int64 in, int64 out; a kernel never raises."""
