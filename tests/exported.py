"""For the tests of exports: a topology with everything that a file can have, and other tools."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

#: Programs that `make` installs beside this Python, and nowhere else.
TOOLS = Path(sys.prefix) / "tools" / "bin"
SECONDS = 300.0  # for hanging only

#: Names that are words of other tools, values that they would interpolate, every key of a file.
ODD = """\
name: 1a-very-long-name-of-a-lab
description: |
  It's "odd": 50% of $$HOME; a#b %% {x}
  -- second line {{ .Unknown }} $${UNKNOWN:?} %%{init: {'theme': 'dark'}}%%
networks:
  lan: {subnet: 10.0.0.0/24}
  full: {subnet: 192.168.121.0/30}
  lonely: {subnet: 172.30.0.0/16}
nodes:
  host: {networks: {lan: 10.0.0.2, full: 192.168.121.1}, roles: [docker], memory: 512M, cpus: 1.5}
  n-host:
    networks: {lan: 10.0.0.3}
    roles: [docker, namespaces]
    cpus: 2
    forward: true
    sysctls: {net.ipv4.conf.all.rp_filter: 2, net.ipv4.conf.eth0.proxy_arp: 1}
    routes: [10.7.0.0/16 via 10.0.0.2 metric 7]
    rules: [from 10.7.0.0/16 lookup 100]
    env: {WHO: "it's $$me", N: "08"}
    binds: [/usr/share/doc:/srv/doc:ro]
    run: ["echo $$WHO > /tmp/who", [ip, link, show]]
  1st: {networks: {full: 192.168.121.2}, gateway: true}
  end: {}
docker:
  bip: {host: 172.29.0.1/24}
  networks:
    front:
      subnet: [172.27.0.0/24, "fd00:31::/64"]
      gateway: 172.27.0.9
      ip_range: 172.27.0.128/25
      driver_opts: {com.docker.network.driver.mtu: 1400}
    end: {internal: true, attachable: true, nodes: [host]}
containers:
  end:
    node: n-host
    command: [sh, -c, 'echo "$$X" "#{a}"; exec sleep 999']
    env: {A: "it's $$Y", B: "22:22", C: "1e3", D: "08"}
    healthcheck: {test: [CMD, test, -n, $$HOSTNAME], interval: 1m30s, timeout: 500ms, retries: 3}
    publish: ["2222:22", "10.0.0.3:8080:80/udp"]
  side: {node: host, network: "container:web", env: {PORT: "81"}, ready: {port: 81}}
  web: {node: host, publish: ["2222:22"]}
  job: {node: host, command: ["true"], expect: exit 0}
  alone: {node: host, network: none}
  many:
    node: host
    networks:
      front:
        ipv4_address: 172.27.0.20
        ipv6_address: "fd00:31::20"
        aliases: [end]
        mac_address: "02:00:00:00:00:20"
      end:
      bridge:
    entrypoint: [sh, -c]
    command: ["exec sleep 999 # $$HOME"]
    hostname: odd.example
    user: "0:0"
    working_dir: /tmp
    labels: {"a.b/c": "50% of $$HOME"}
    cap_add: [NET_ADMIN]
    cap_drop: [MKNOD]
    devices: [/dev/null:/dev/none]
    sysctls: {net.ipv4.ip_forward: 1}
    ulimits: {nofile: {soft: 100, hard: 200}, core: 0}
    cpus: 0.5
    mem_limit: 64m
    pids_limit: 50
    volumes: ["data:/data", "data:/again:ro", "/srv:/srv"]
    tmpfs: [/run]
    dns: [10.0.0.9]
    extra_hosts: ["db:10.0.0.5"]
    restart: unless-stopped
    init: true
    stop_signal: SIGKILL
    stop_grace_period: 1s
    publish: ["9000-9002:90-92/udp", "[::1]:9003:93"]
  bare: {node: n-host, mac_address: "02:00:00:00:00:21", privileged: true}
  inside: {node: host, network: host, env: {PORT: "82"}}
namespaces: {ns1: {node: n-host}, end: {node: n-host}}
bridges: {br0: {node: n-host}}
veths:
  - {node: n-host, ends: [{name: a, namespace: ns1, address: 10.1.0.1/24}, {name: b, bridge: br0}]}
  - {node: n-host, ends: [{name: c, namespace: ns1}, {name: d, namespace: end}]}
faults: {slow: delay host 10ms}
"""


def by_tool(folder: Path, argv: Sequence[str | Path], **env: str) -> str:
    """The output of another tool in a folder, with a home folder that is empty.

    Any exit status but 0 fails the test.
    """
    home = folder / "home"
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=folder,
        env={**os.environ, "HOME": str(home), **env},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def ansible_reaches(folder: Path) -> set[str]:
    """The hosts of an exported inventory that Ansible runs a module on."""
    said = by_tool(folder, [TOOLS / "ansible", "-m", "ping", "all"])
    return set(re.findall(r"^([\w-]+) \| SUCCESS", said, re.MULTILINE))
