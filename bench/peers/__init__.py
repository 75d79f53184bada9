"""What stands beside the library: C allocators, programs in other languages, traces of malloc."""
