"""Machines that exist, for tests of `provider: ssh`: nodes of one lab, seen by another one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from commands import Said, call

from testbed.testing.provider import until

if TYPE_CHECKING:
    from testbed.labs.lab import Lab

LAB = "rack"
#: A lab of two machines on which roles are installed; a second container is to follow.
INSTALLED = f"""\
name: {LAB}
provider: ssh
ssh: {{config: ssh_config, install: true}}
networks: {{lan: {{subnet: 10.168.0.0/24}}}}
flannel: {{backend: vxlan, network: 100.96.0.0/16}}
nodes:
  node1: {{networks: {{lan: 10.168.0.2}}, roles: [etcd, docker, flannel]}}
  node2: {{networks: {{lan: 10.168.0.3}}, roles: [docker, flannel]}}
containers:
  container-1: {{node: node1, image: nginx}}
"""
#: What a machine is made of, each part with the command that prints it.  Left out is what changes
#: by itself: times, counters, logs, and what a login writes.
PARTS: Mapping[str, str] = {
    "packages": "dpkg-query -W 2> /dev/null || :",
    "files": "find /etc /root /opt /srv /home /tmp /var/tmp /var/lib /usr/local/bin /run -xdev"
    " ! -path '/root/.*/*' ! -path '/run/testbed*' ! -path '/run/systemd*' ! -path '/run/user*'"
    " ! -path '/run/sshd*'"
    " ! -path '/var/lib/systemd/*' ! -path '/run/xtables.lock' ! -path '/run/utmp'"
    " -printf '%p %y %m %U %l\\n'",
    "folders of programs": "find /usr/bin /usr/sbin /usr/lib -xdev -maxdepth 1 | sort",
    "links": "ip -o link | sed 's/^[0-9]*: //; s/ mtu .*//' | sort",
    "addresses": "ip -o -4 address | awk '{print $2, $4}'",
    "routes": "ip route; ip -6 route show table main proto static",
    "neighbours": "ip neigh show nud permanent; bridge fdb show | grep flannel || :",
    "rules": "for one in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do"
    " command -v $one-save > /dev/null || continue; echo $one; $one-save 2> /dev/null |"
    " grep -v '^#' | sed 's/\\[.*//' | grep -v '^:[A-Z]* ACCEPT\\|^\\*\\|^COMMIT' || :; done",
    "tables": "! command -v nft > /dev/null || nft list tables",
    "settings": "sysctl -a 2> /dev/null | grep -E"
    " '^net\\.(ipv[46]\\.(ip_forward|conf\\.(all|default)\\.)|bridge\\.)' | sort",
    "mounts": "cut -d ' ' -f 3- /proc/self/mountinfo | sed 's/ - .*//' | sort",
    "modules": "cut -d ' ' -f 1 /proc/modules 2> /dev/null | grep -x br_netfilter || :",
    "cgroups": "find /sys/fs/cgroup -type d -name 'testbed*'",
    "processes": "ps -e -o args= |"
    " grep -E 'testbed-init|testbed-agent|dockerd|containerd|etcd|flanneld|nginx|docker-proxy' |"
    " grep -v grep | sort || :",
}


@dataclass(frozen=True)
class Hidden:
    """The machines, as their owner has them, and the folder of a user who only logs in to them."""

    lab: Lab
    folder: Path

    @property
    def state(self) -> str:
        """The state folder of the user."""
        return str(self.folder / "state")

    def testbed(self, *argv: str) -> Said:
        return call(self.folder, *argv, env={"TESTBED_STATE": self.state})

    def write(self, text: str, name: str = "lab.yaml") -> str:
        (self.folder / name).write_text(text)
        return str(self.folder / name)

    def look(self, node: str) -> dict[str, list[str]]:
        """The state of a machine, by :data:`PARTS`."""
        machine = self.lab.node(node)
        timeout = 300 * machine.slowness
        return {
            part: machine.run(["sh", "-c", script], timeout=timeout).stdout.splitlines()
            for part, script in PARTS.items()
        }

    def holds(self, node: str, condition: str) -> bool:
        """Tell whether a shell's condition holds on a machine."""
        return self.lab.node(node).run(["sh", "-c", condition], check=False).ok

    def killed_when(self, argv: list[str], node: str, condition: str) -> bool:
        """Run a command of the user, and kill it as soon as a condition holds on a machine.

        False if it has ended before.
        """
        env = {**os.environ, "TESTBED_STATE": self.state}
        command = [sys.executable, "-P", "-m", "testbed", *argv]
        out = subprocess.DEVNULL
        with subprocess.Popen(command, env=env, stdin=out, stdout=out, stderr=out) as client:
            try:
                assert until(lambda: self.holds(node, condition) or client.poll() is not None, 600)
                return client.poll() is None
            finally:
                client.send_signal(signal.SIGKILL)


def differences(
    before: Mapping[str, list[str]], after: Mapping[str, list[str]]
) -> dict[str, list[str]]:
    """Return the differences between two looks at a machine, by part."""
    found = {}
    for part, lines in before.items():
        less, more = sorted({*lines} - {*after[part]}), sorted({*after[part]} - {*lines})
        if less or more:
            found[part] = [*(f"- {line}" for line in less), *(f"+ {line}" for line in more)]
    return found


def ssh_config(lab: Lab, folder: Path, state: Path) -> None:
    """Write the file by which ssh reaches the nodes of a lab, as hosts of their names."""
    env = {"TESTBED_STATE": str(state)}
    file = folder / "ssh_config"
    said = call(folder, "export", lab.name, "--to", "ssh-config", "-o", str(file), env=env)
    assert said.status == 0, said.err
    # The user's own commands have another state folder.
    text = re.sub(r"ProxyCommand ", f"ProxyCommand env TESTBED_STATE={state} ", file.read_text())
    file.write_text(text)
