"""Roles: software on nodes, installed through the node's own interface."""
