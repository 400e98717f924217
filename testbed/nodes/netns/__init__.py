"""Nodes as namespaces of this machine."""
