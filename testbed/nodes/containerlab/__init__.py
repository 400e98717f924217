"""Nodes that containerlab creates, in a cell with an engine of its own."""
