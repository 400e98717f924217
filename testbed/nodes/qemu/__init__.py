"""Nodes as virtual machines that QEMU runs, on the fabric of namespace nodes."""
