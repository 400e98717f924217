"""containerlab's own topology files, read where its Go module is; nothing of them is kept here."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
from pathlib import Path

from testbed.artifacts.gomod import MODULES

MODULE = "github.com/srl-labs/containerlab"


@functools.cache
def module() -> Path:
    """The folder of containerlab's Go module, of the version that testbed builds."""
    text = (MODULES / "containerlab" / "go.mod").read_text()
    found = re.search(rf"{re.escape(MODULE)} (v\S+)", text)
    assert found is not None
    done = subprocess.run(
        ["go", "mod", "download", "-json", f"{MODULE}@{found[1]}"],
        env={**os.environ, "GOFLAGS": "-mod=mod"},
        check=True,
        capture_output=True,
        cwd="/",
    )
    return Path(json.loads(done.stdout)["Dir"])
