"""Topologies for the tests of exports, with everything that a file can have."""

from __future__ import annotations

#: Names that are words of other tools, values that they would interpolate, every key of a file.
ODD = """\
name: 1a-very-long-name-of-a-lab
description: |
  It's "odd": 50% of $HOME; a#b %% {x}
  -- second line
networks:
  lan: {subnet: 10.0.0.0/24}
  full: {subnet: 192.168.121.0/30}
  lonely: {subnet: 172.30.0.0/16}
nodes:
  host: {networks: {lan: 10.0.0.2, full: 192.168.121.1}, roles: [docker], memory: 512M, cpus: 1.5}
  n-host: {networks: {lan: 10.0.0.3}, roles: [docker, namespaces], cpus: 2}
  1st: {networks: {full: 192.168.121.2}, gateway: true}
  end: {}
docker:
  bip: {host: 172.29.0.1/24}
containers:
  end:
    node: n-host
    command: [sh, -c, 'echo "$X" "#{a}"; exec sleep 999']
    env: {A: "it's $Y", B: "22:22"}
    healthcheck: {test: [CMD, test, -n, $HOSTNAME], interval: 1m30s, timeout: 500ms, retries: 3}
    publish: ["2222:22", "10.0.0.3:8080:80/udp"]
  side: {node: host, network: "container:web", env: {PORT: "81"}, ready: {port: 81}}
  web: {node: host, publish: ["2222:22"]}
  job: {node: host, command: ["true"], expect: exit 0}
  alone: {node: host, network: none}
  inside: {node: host, network: host, env: {PORT: "82"}}
namespaces: {ns1: {node: n-host}, end: {node: n-host}}
bridges: {br0: {node: n-host}}
veths:
  - {node: n-host, ends: [{name: a, namespace: ns1, address: 10.1.0.1/24}, {name: b, bridge: br0}]}
  - {node: n-host, ends: [{name: c, namespace: ns1}, {name: d, namespace: end}]}
faults: {slow: delay host 10ms}
"""
