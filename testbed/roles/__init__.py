"""Roles put software on nodes through the nodes' own interface."""
