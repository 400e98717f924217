"""Container networking put to the test on real machines."""

__version__ = "0.1.0"
