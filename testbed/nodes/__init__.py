"""Nodes: machines that commands run on, and the providers that make them."""
