"""Labs: planned, brought up, looked at, taken down."""
