"""What is timed: one loop over caches, floors and C, and what the floors and the stress loops need besides."""
