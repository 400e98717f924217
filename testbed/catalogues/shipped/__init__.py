"""The shipped catalogue: five documents on container networks, and their checks."""

from pathlib import Path

FOLDER = Path(__file__).parent
