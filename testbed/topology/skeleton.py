"""Parts that the skeletons of ``testbed new`` and ``testbed claims new`` share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from testbed import files, owner
from testbed.errors import MachineError, TopologyError, UsageError
from testbed.topology.load import load_text

TOPOLOGY = """\
# Two machines on one network. `testbed schema` describes all keys, for editors, too.
name: {name}
description: {description}
networks:
  lan: {{subnet: 10.168.0.0/24}}
nodes:
  node1: {{networks: {{lan: 10.168.0.2}}}}
  node2: {{networks: {{lan: 10.168.0.3}}}}
"""


def name_from(text: str) -> str:
    """Return a name for a lab and its parts, made from the name of a folder or from a title.

    >>> name_from("Port 80 is closed"), name_from("42")
    ('port-80-is-closed', 'my-42')
    """
    word = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:20].strip("-")
    for name in (word, f"my-{word}"):
        try:
            load_text(TOPOLOGY.format(name=name, description="none"), "a topology")
        except TopologyError:  # not a name that a lab may have
            continue
        return name
    return "my-lab"


def write(texts: Mapping[Path, str], **words: str) -> list[Path]:
    """Write the files of a skeleton, with words in braces filled in.  Returns their paths.

    Missing folders are created. Raises UsageError, MachineError.
    """
    for path, text in texts.items():
        try:
            owner.make(path.parent)
        except OSError as error:
            if isinstance(error, MachineError):
                raise
            raise UsageError(f"cannot create {path.parent}: {error.strerror}") from error
        files.write(path, text.format(**words))
    return list(texts)
