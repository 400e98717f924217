"""What joins Pods to networks, made wrong."""

from __future__ import annotations
