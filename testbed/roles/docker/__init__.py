"""Docker: one daemon per node, with docker0's address as configured."""

from testbed.roles.docker.role import Docker

__all__ = ["Docker"]
