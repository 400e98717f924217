"""Nodes that are reached by one stream of bytes, with the agent at its other end."""
