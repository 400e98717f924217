"""Virtual machines: how they are accelerated, and the box that they start from."""
