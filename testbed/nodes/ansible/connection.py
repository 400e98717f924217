"""Ansible's connection to the nodes of a lab, by `testbed exec`.

`testbed export --to ansible` copies this file beside the inventory. It runs in Ansible, without
the package testbed.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import IO, Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = """
name: testbed
short_description: Run tasks on the nodes of a lab
description: Runs each command with C(testbed exec), as root of the node.
options:
  node:
    description: Name of the node.
    vars:
      - name: inventory_hostname
  lab:
    description: Name of the lab.
    vars:
      - name: testbed_lab
  command:
    description: Command line of testbed, as a list.
    type: list
    elements: str
    vars:
      - name: testbed_command
"""


class Connection(ConnectionBase):  # type: ignore[misc]  # Ansible ships without type information
    """One node."""

    transport = "testbed"
    has_pipelining = True

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def exec_command(
        self,
        cmd: str,
        in_data: bytes | None = None,
        sudoable: bool = True,  # noqa: FBT001, FBT002  the signature is Ansible's
    ) -> tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        done = self._run(["/bin/sh", "-c", cmd], input=in_data or b"", stdout=subprocess.PIPE)
        return done.returncode, done.stdout, done.stderr

    def put_file(self, in_path: str, out_path: str) -> None:
        super().put_file(in_path, out_path)
        with Path(in_path).open("rb") as file:
            self._copy(["/bin/sh", "-c", 'cat > "$1"', "sh", out_path], stdin=file)

    def fetch_file(self, in_path: str, out_path: str) -> None:
        super().fetch_file(in_path, out_path)
        with Path(out_path).open("wb") as file:
            self._copy(["cat", in_path], stdin=subprocess.DEVNULL, stdout=file)

    def close(self) -> None:
        self._connected = False

    def _copy(self, argv: list[str], **files: IO[bytes] | int) -> None:
        done = self._run(argv, **files)
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip()
            raise AnsibleConnectionFailure(f"{self.get_option('node')}: {words}")

    def _run(self, argv: list[str], **given: Any) -> subprocess.CompletedProcess[bytes]:
        option = self.get_option
        on_node = [*option("command"), "exec", "-l", option("lab"), option("node"), *argv]
        return subprocess.run(on_node, stderr=subprocess.PIPE, check=False, **given)
