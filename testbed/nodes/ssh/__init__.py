"""Nodes that are reached over ssh: virtual machines of any provider."""
