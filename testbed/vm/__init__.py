"""Virtual machines: their acceleration, and the box that they start from."""
