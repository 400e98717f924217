"""Tests that kill, starve and race testbed: whatever happens, nothing is left."""
