"""Raw memory by size."""
