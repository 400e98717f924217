"""Nodes that are reached over ssh: virtual machines, whoever made them."""
