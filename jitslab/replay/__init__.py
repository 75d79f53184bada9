"""Allocation traces: recorded, replayed, compared with malloc."""
