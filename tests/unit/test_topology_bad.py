"""Wrong topology files: every problem is reported, at its place, in words that help."""

from __future__ import annotations

import pytest
from plugins import declare_elsewhere
from topology_texts import (
    CLUSTER,
    CLUSTER6,
    DOCKER,
    FLANNEL,
    LAN,
    NETNS,
    NODES,
    NODES6,
    Bad,
    bad,
    veth,
)

from testbed.errors import Problem, TopologyError
from testbed.topology import load_data, load_text


@pytest.fixture(autouse=True)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    """Providers on fabrics of their own, beside those of the shipped one."""
    declare_elsewhere(monkeypatch)


OK = "nodes: {a: {}}\n"

SYNTAX = {
    "tab": bad("name: t\nnodes:\n§\ta: {}\n", "a tab|spaces"),
    "unclosed list": bad("name: [t\n§", "YAML|while parsing a flow sequence|line 1"),
    "colon in plain text": bad(f"name: t\ndescription: a§: b\n{OK}", "mapping values|quote"),
    "reserved character": bad("name: §@x\n", "cannot start any token|quote"),
    "unclosed quote": bad('name: "t\n§', "unexpected end"),
    "second document": bad(f"name: t\n{OK}§---\nname: u\n", "one document|second"),
    "unknown alias": bad("name: t\nnodes:\n  a: &first {}\n  b: §*frst\n", "above it|'*first'"),
    "alias before its anchor": bad("name: t\nnodes: {a: §*x, b: &x {}}\n", "*x|write &x before"),
    "alias inside of its anchor": bad(
        f"name: t\n{OK}x-a: &a [{{b: §*a}}]\n", "contain itself|*a inside of &a"
    ),
    "merge of a text": bad("name: t\nnodes:\n  a: {<<: §x}\n", "a mapping to merge|'x'"),
    "merge of a list of texts": bad("name: t\nnodes:\n  a: {<<: [{}, §1]}\n", "list of mappings"),
    "quoted merge key": bad("name: t\nnodes:\n  a: {§'<<': {}}\n", "a known key|'<<'"),
    "unknown alias as a key": bad(f"name: t\n{OK}§*x : 1\n", "an alias of an anchor above it"),
    "unset variable": bad(f"name: t\ndescription: §${{UNSET_V}}\n{OK}", "variable UNSET_V|--set"),
    "no variable": bad(f"name: t\ndescription: §a $(b)\n{OK}", "${NAME}|$$ for a dollar sign"),
    "file in itself": bad(f"name: t\ninclude: §t.yaml\n{OK}", "do not include each other"),
    "python tag": bad(f"name: §!!python/object/apply:os.system [ls]\n{OK}", "tag|python/object"),
    "standard tag": bad(f"name: §!!str t\n{OK}", "!!str|remove the tag"),
    "own tag": bad(f"name: §!x t\n{OK}", "'!x'"),
    "integer key": bad("name: t\nnodes: {§1: {}}\n", 'text for a key|integer 1|quote it: "1"'),
    "boolean key": bad("name: t\nnodes: {§no: {}}\n", "boolean false|YAML 1.1|quote it"),
    "null key": bad("name: t\nnodes: {§~: {}}\n", "nothing"),
    "list key": bad(f"name: t\n{OK}? §[a]\n: 1\n", "a list|use a name"),
    "mapping key": bad(f"name: t\n{OK}? §{{a: 1}}\n: 1\n", "a mapping"),
    "duplicate key": bad("name: t\nnodes:\n  a: {}\n  §a: {cpus: 1}\n", "'a' again|line 3"),
    "duplicate quoted key": bad(f'name: t\n§"name": u\n{OK}', "'name' again|line 1"),
    "too deep": bad("name: " + "[" * 20 + "§[" + "]" * 21, "at most 20 levels"),
    "control character": bad("name: t§\x07\n", "U+0007|remove"),
    "NUL": bad("name: t§\0\n", "NUL"),
    "NUL by escape": bad(f'name: t\ndescription: §"\\0"\n{OK}', "NUL"),
}

FORM = {
    "a list": bad("§- a\n", "a mapping with 'name'|a list"),
    "a text": bad("§hello\n", "a mapping|'hello'"),
    "unknown key": bad(f"name: t\n{OK}§container: {{}}\n", "'container'|did you mean 'containers'"),
    "unknown key, nothing near": bad(f"name: t\n{OK}§qqq: 1\n", "known: name, description"),
    "missing keys": bad("§§{}\n", "'name'|none|add it: name", "'nodes'"),
    "list for a mapping": bad("name: t\nnodes: §[a, b]\n", "a mapping|a list"),
    "null for a mapping": bad("name: t\nnodes:\n  a:§\n", "a mapping|nothing|{} for none"),
    "mapping for text": bad(f"name: §{{a: b}}\n{OK}", "name of a lab|a mapping"),
    "text for a list": bad("name: t\nnodes: {a: {roles: §docker}}\n", "list of roles|[a, b]"),
    "no is false": bad(f"name: §no\n{OK}", 'boolean false|YAML 1.1|quote it: "no"'),
    "integer": bad(f"name: §123\n{OK}", 'integer 123|quote it: "123"'),
    "float": bad(f"name: §1.5\n{OK}", "number 1.5|'1-5' would do"),
    "octal": bad(f"name: §010\n{OK}", 'octal|quote it: "010"'),
    "base 60": bad(f"name: §22:22\n{OK}", "base 60|'22-22' would do"),
    "date": bad(f"name: §2024-01-02\n{OK}", "a date|quote it"),
    "exponent": bad(f"name: §1e3\n{OK}", "a number|quote it"),
    "hexadecimal": bad(f"name: §0x1f\n{OK}", "hexadecimal"),
    "binary": bad(f"name: §0b11\n{OK}", "binary"),
    "infinite": bad("name: t\nnodes: {a: {cpus: §.inf}}\n", "number of CPUs"),
    "gateway yes": bad("name: t\nnodes: {a: {gateway: §yes}}\n", "true or false|'yes'"),
    "gateway quoted": bad('name: t\nnodes: {a: {gateway: §"true"}}\n', "true or false|unquoted"),
    "no node": bad("name: t\nnodes: §{}\n", "at least one node"),
    "name too long": bad(f"name: §{'a' * 31}\n{OK}", "at most 30|31|shorten"),
    "name in capitals": bad(f"name: §My_Lab\n{OK}", "RFC 1123|'My_Lab'|'my-lab' would do"),
    "name with final hyphen": bad(f"name: §a-\n{OK}", "RFC 1123|'a' would do"),
    "name with newline": bad(f'name: §"a\\n"\n{OK}', "RFC 1123"),
    "name in other letters": bad(f"name: §ä٣\n{OK}", "RFC 1123|choose another"),
    "empty name": bad(f'name: §""\n{OK}', "RFC 1123"),
    "node name too long": bad("name: t\nnodes: {§abcdefghijklm: {}}\n", "at most 12|a node"),
    "node named like a bridge": bad("name: t\nnodes: {§br-x: {}}\n", "fabric|'br-x'"),
    "node named like the fabric": bad("name: t\nnodes: {§fabric: {}}\n", "fabric|'fabric'"),
    "node named like the loopback": bad("name: t\nnodes: {§lo: {}}\n", "loopback|'lo'"),
    "node named like the kernel's settings": bad("name: t\nnodes: {§all: {}}\n", "net.ipv4.conf"),
    "node named like new links' settings": bad("name: t\nnodes: {§default: {}}\n", "conf"),
    "node named like a link's index": bad("name: t\nnodes: {§if5: {}}\n", "ip(8)"),
    "node named like an address": bad('name: t\nnodes: {§"127": {}}\n', "IPv4 address"),
    "node named like an octal address": bad('name: t\nnodes: {§"017": {}}\n', "IPv4 address"),
    "node named like a hexadecimal address": bad('name: t\nnodes: {§"0x7f": {}}\n', "IPv4"),
    "node named localhost": bad("name: t\nnodes: {§localhost: {}}\n", "/etc/hosts"),
    "node named ip6-loopback": bad("name: t\nnodes: {§ip6-loopback: {}}\n", "/etc/hosts"),
    "node named like a cgroup's file": bad("name: t\nnodes: {§tasks: {}}\n", "cgroup"),
    "container named like an address": bad(
        "name: t\nnodes: {a: {roles: [docker], networks: {n: 10.0.0.2}}}\n"
        'networks: {n: {subnet: 10.0.0.0/24}}\ncontainers: {§"12": {node: a}}\n',
        "IPv4 address",
    ),
    "node with a dot": bad("name: t\nnodes: {§a.b: {}}\n", "RFC 1123|'a-b'"),
    "network name": bad(f"name: t\nnetworks: {{§LAN: {{subnet: 10.0.0.0/24}}}}\n{OK}", "'lan'"),
    "unknown provider": bad(
        f"name: t\nprovider: §vargant\n{OK}", "a provider: containerlab, |netns, qemu|'vagrant'?"
    ),
    "unknown provider of a node": bad(
        "name: t\nnodes: {a: {provider: §qemo}}\n",
        "a provider: containerlab, |netns, qemu|'qemo'|mean 'qemu'",
    ),
    "provider of a node that is no text": bad(
        "name: t\nnodes: {a: {provider: §[qemu]}}\n",
        "a provider: containerlab, |netns|a list|write text",
    ),
    "unknown role": bad(
        "name: t\nnodes: {a: {roles: [§dokcer]}}\n", "a role|'dokcer'|mean 'docker'"
    ),
    "role twice": bad(
        "name: t\nnodes: {a: {roles: [namespaces, §namespaces]}}\n", "each role once|again"
    ),
    "cpus zero": bad("name: t\nnodes: {a: {cpus: §0}}\n", "0.01 or more|integer 0"),
    "cpus negative": bad("name: t\nnodes: {a: {cpus: §-1}}\n", "number of CPUs"),
    "cpus true": bad("name: t\nnodes: {a: {cpus: §true}}\n", "number of CPUs|boolean"),
    "cpus text": bad("name: t\nnodes: {a: {cpus: §two}}\n", "number of CPUs|'two'"),
    "memory too small": bad("name: t\nnodes: {a: {memory: §31M}}\n", "32M or more|'31M'"),
    "image of a node": bad("name: t\nnodes: {a: {image: §Alpine}}\n", "an image|'Alpine'"),
    "ports of a node": bad(
        "name: t\nnodes: {a: {§ports: ['80:80']}}\n", "known key|'ports'|testbed forward"
    ),
    "kind of a node": bad("name: t\nnodes: {a: {§kind: linux}}\n", "known key|roles|other tools"),
    "Compose's word for publish": bad(
        DOCKER + "containers: {c1: {node: n1, §ports: ['80:80']}}\n", "'ports'|write publish"
    ),
    "memory unit": bad("name: t\nnodes: {a: {memory: §512MB}}\n", "512M, 2G"),
    "memory float": bad("name: t\nnodes: {a: {memory: §1.5}}\n", "amount of memory"),
    "memory huge": bad("name: t\nnodes: {a: {memory: §999999999T}}\n", "amount of memory"),
    "description": bad(f"name: t\ndescription: §[a]\n{OK}", "text|a list"),
}

NETWORKS = {
    "outside": bad(
        LAN + "nodes: {a: {networks: {lan: §10.169.0.2}}}\n",
        "an address inside lan (10.168.0.0/24)|10.169.0.2|or the network's subnet",
    ),
    "network address": bad(
        LAN + "nodes: {a: {networks: {lan: §10.168.0.0}}}\n", "a host's address|itself"
    ),
    "address on a network without a subnet": bad(
        "name: t\nnetworks: {w: {}}\nnodes: {a: {networks: {w: §10.0.0.2}}}\n",
        "with its prefix|no subnet|10.0.0.2",
    ),
    "mtu": bad("name: t\nnetworks: {w: {mtu: §67}}\nnodes: {a: {}}\n", "68 to 65535"),
    "port mtu": bad(LAN + "nodes: {a: {networks: {lan: {mtu: §70000}}}}\n", "68 to 65535"),
    "address and addresses": bad(
        LAN + "nodes: {a: {networks: {lan: §{address: 10.168.0.2, addresses: [10.168.0.3]}}}}\n",
        "either address or addresses|both",
    ),
    "no port": bad(LAN + "nodes: {a: {networks: {lan: §[]}}}\n", "at least one port|none"),
    "same address on a node": bad(
        LAN + "nodes: {a: {networks: {lan: [10.168.0.2, §10.168.0.2]}}}\n", "lan once|of eth0"
    ),
    "same address in a list": bad(
        LAN + "nodes: {a: {networks: {lan: {addresses: [10.168.0.2, §10.168.0.2]}}}}\n",
        "lan once|again",
    ),
    "same port name": bad(
        "name: t\nnetworks: {w: {}, v: {}}\n"
        "nodes: {a: {networks: {w: {name: eth1}, v: {name: §eth1}}}}\n",
        "name once on a|used before",
    ),
    "port name of docker": bad(
        LAN + "nodes: {a: {networks: {lan: {address: 10.168.0.2, name: §docker0}}, "
        "roles: [docker]}}\n",
        "name once on a|docker0",
    ),
    "port named all": bad(LAN + "nodes: {a: {networks: {lan: {name: §all}}}}\n", "other meaning"),
    "port name too long": bad(
        LAN + "nodes: {a: {networks: {lan: {name: §a-very-long-name}}}}\n", "at most 15"
    ),
    "mac": bad(LAN + 'nodes: {a: {networks: {lan: {mac: §"02:00"}}}}\n', "MAC address"),
    "mac of a group": bad(
        LAN + 'nodes: {a: {networks: {lan: {mac: §"01:00:5e:00:00:01"}}}}\n', "one interface|even"
    ),
    "unknown key of a port": bad(
        LAN + "nodes: {a: {networks: {lan: {§adress: 10.168.0.2}}}}\n", "mean 'address'"
    ),
    "broadcast": bad(LAN + "nodes: {a: {networks: {lan: §10.168.0.255}}}\n", "host's|broadcast"),
    "duplicate": bad(
        LAN + "nodes:\n  a: {networks: {lan: 10.168.0.2}}\n  b: {networks: {lan: §10.168.0.2}}\n",
        "each address of lan once|address of a|take another",
    ),
    "unknown": bad(
        LAN + "nodes: {a: {networks: {§lam: 10.168.0.2}}}\n", "name of a network|mean 'lan'"
    ),
    "with prefix": bad(
        LAN + "nodes: {a: {networks: {lan: §10.168.0.2/24}}}\n", "IPv4 address|remove the prefix"
    ),
    "leading zeros": bad(LAN + "nodes: {a: {networks: {lan: §10.168.0.02}}}\n", "leading zeros"),
    "IPv6": bad(LAN + 'nodes: {a: {networks: {lan: §"fd00::2"}}}\n', "with its prefix|no subnet"),
    "no address": bad(LAN + "nodes: {a: {networks: {lan: §12}}}\n", "IPv4 address|integer 12"),
    "a machine with too many networks": bad(
        "name: t\nprovider: qemu\nnetworks:\n"
        + "".join(f"  n{i}: {{subnet: 10.0.{i}.0/24}}\n" for i in range(28))
        + "nodes:\n  a:\n    networks:\n      §"
        + "      ".join(f"n{i}: 10.0.{i}.2\n" for i in range(28)),
        "at most 27|28",
    ),
    "a network with too many nodes": bad(
        "name: t\nnetworks: {n: {subnet: 10.0.0.0/16}}\nnodes:\n"
        + "".join(f"  n{i}: {{networks: {{n: 10.0.{i >> 8}.{i & 255}}}}}\n" for i in range(1, 1024))
        + "  last: {networks: {§n: 10.0.9.9}}\n",
        "at most 1023|last",
    ),
    "providers of two fabrics": bad(
        "name: t\nnodes:\n  a: {provider: §elsewhere}\n  b: {}\n  c: {provider: qemu}\n",
        "can share a lab with netns: containerlab, netns, |'elsewhere'|a lab of its own",
    ),
    "a provider that is not the lab's": bad(
        "name: t\nprovider: elsewhere\nnodes:\n  a: {}\n  b: {provider: §netns}\n",
        "can share a lab with elsewhere: elsewhere|'netns'",
    ),
    "providers of two fabrics, none the lab's": bad(
        "name: t\nnodes:\n  a: {provider: elsewhere}\n  b: {provider: §overseas}\n",
        "can share a lab with elsewhere: elsewhere|'overseas'",
    ),
    "list of networks": bad(LAN + "nodes: {a: {networks: §[lan]}}\n", "network to address|a list"),
    "host bits": bad(
        f"name: t\nnetworks: {{lan: {{subnet: §10.168.0.2/24}}}}\n{OK}", "write 10.168.0.0/24"
    ),
    "a subnet that is a number": bad(
        f"name: t\nnetworks: {{lan: {{subnet: §10}}}}\n{OK}", "an IPv4 network|the integer 10|four"
    ),
    "no prefix": bad(
        f"name: t\nnetworks: {{lan: {{subnet: §10.168.0.0}}}}\n{OK}", "add the prefix"
    ),
    "netmask": bad(
        f"name: t\nnetworks: {{lan: {{subnet: §10.168.0.0/255.255.255.0}}}}\n{OK}", "prefix from 0"
    ),
    "prefix 33": bad(f"name: t\nnetworks: {{lan: {{subnet: §10.0.0.0/33}}}}\n{OK}", "0 to 32"),
    "prefix 32": bad(f"name: t\nnetworks: {{lan: {{subnet: §10.0.0.0/32}}}}\n{OK}", "8 to 31"),
    "multicast": bad(f"name: t\nnetworks: {{lan: {{subnet: §224.1.0.0/24}}}}\n{OK}", "RFC 1918"),
    "loopback": bad(f"name: t\nnetworks: {{lan: {{subnet: §127.0.0.0/8}}}}\n{OK}", "127.0.0.0/8"),
    "same subnet": bad(
        "name: t\nnetworks:\n  a: {subnet: 10.0.0.0/24}\n  b: {subnet: §10.0.0.0/24}\n" + OK,
        "do not overlap|again, the subnet of a",
    ),
    "overlap, the wider last": bad(
        "name: t\nnetworks:\n  a: {subnet: 10.0.1.0/24}\n  b: {subnet: §10.0.0.0/16}\n"
        "  c: {subnet: §10.0.9.0/24}\n" + OK,
        "do not overlap|10.0.1.0/24 of a",
        "10.0.0.0/16 of b",
    ),
    "two networks of one subnet on a node": bad(
        "name: t\nnetworks:\n  a: {subnet: 10.0.0.0/24}\n  b: {subnet: §10.0.0.0/24}\n"
        "nodes: {h: {networks: {a: 10.0.0.2, b: 10.0.0.3}}}\n",
        "do not overlap|again, the subnet of a|a segment of its own|are a list",
    ),
    "two gateways": bad(
        LAN + "nodes:\n  a: {networks: {lan: 10.168.0.1}, gateway: true}\n"
        "  b: {networks: {lan: 10.168.0.2}, gateway: §true}\n",
        "at most one gateway on lan|b besides a",
    ),
    "gateway to nowhere": bad(
        "name: t\nnodes: {a: {gateway: §true}}\n", "a gateway with an address|none"
    ),
    "docker without network": bad("name: t\nnodes: {§a: {roles: [docker]}}\n", "role docker|none"),
}

OVERLAY = {
    "no section": bad(NODES.replace(", flannel]", ", §flannel]", 1), "a flannel section|none"),
    "no member": bad(DOCKER + "§flannel: {}\n", "role flannel|remove the section"),
    "no etcd": bad(
        FLANNEL.replace("[etcd, docker, flannel]", "[docker, §flannel]"), "role etcd|leases"
    ),
    "two etcds": bad(
        FLANNEL.replace("[docker, flannel]", "[docker, flannel, §etcd]"), "single member|n2 besides"
    ),
    "no network": bad(
        FLANNEL.replace("  out:", "  §n3: {roles: [flannel]}\n  out:"), "role flannel|none"
    ),
    "backend": bad(NODES + "flannel: {backend: §vxlna}\n", "udp, vxlan, host-gw|mean 'vxlan'"),
    "host-gw port": bad(NODES + "flannel: {backend: host-gw, §port: 1}\n", "no port|remove it"),
    "udp vni": bad(NODES + "flannel: {backend: udp, §vni: 1}\n", "no vni with udp"),
    "port": bad(NODES + "flannel: {port: §65536}\n", "from 1 to 65535|65536"),
    "port text": bad(NODES + 'flannel: {port: §"8472"}\n', "an integer|'8472'"),
    "vni": bad(NODES + "flannel: {vni: §16777216}\n", "1 to 16777215"),
    "udp mtu": bad(NODES + "flannel: {backend: udp, §mtu: 1400}\n", "no mtu with udp|that of the"),
    "mtu above the link's": bad(NODES + "flannel: {mtu: §1501}\n", "at most 1500|1501|the kernel"),
    "mtu above the network's": bad(
        (NODES + "flannel: {mtu: §1401}\n").replace("/24}", "/24, mtu: 1400}"),
        "at most 1400, the MTU of n1 on lan|1401",
    ),
    "mtu too small": bad(NODES + "flannel: {mtu: §117}\n", "from 118 to 65535|117"),
    "udp without tunnel": bad(
        NODES + "flannel: {backend: udp, §direct-routing: true}\n", "no direct-routing with udp"
    ),
    "udp with IPv6": bad(NODES6 + "flannel: {backend: udp, §ipv6: {}}\n", "no ipv6 with udp|alone"),
    "IPv6 without an address of a node": bad(
        NODES.replace("lan: 10.168.0.2", 'lan: {addresses: [10.168.0.2, "fd00:1::2/64"]}').replace(
            "lan: 10.168.0.3", "§lan: 10.168.0.3"
        )
        + "flannel: {ipv6: {}}\n",
        "an IPv6 address of n2 on lan|10.168.0.3|subnet6",
    ),
    "network of IPv4 for IPv6": bad(
        NODES6 + "flannel: {ipv6: {network: §10.9.0.0/16}}\n", "an IPv6 network|10.9.0.0/16"
    ),
    "network of IPv6 for IPv4": bad(
        NODES6 + 'flannel: {network: §"fd00:9::/48"}\n', "an IPv4 network|fd00:9::/48"
    ),
    "IPv6 network of the nodes": bad(
        NODES6.replace('"fd00:1::/64"', '§"fd00:1::/64"')
        + 'flannel: {ipv6: {network: "fd00:1::/48"}}\n',
        "apart from flannel's network|fd00:1::/64",
    ),
    "IPv6 network of another one": bad(
        NODES6 + "flannel: {ipv6: {}, networks: {blue: {network: 10.9.0.0/16, "
        'ipv6: {network: §"fd00:100:96::/56"}}}}\n',
        "do not overlap|fd00:100:96::/56",
    ),
    "further network without an IPv6 network": bad(
        NODES6 + "flannel: {networks: {blue: {network: 10.9.0.0/16, ipv6: §{}}}}\n",
        "the key 'network'|none",
    ),
    "IPv6 subnet outside": bad(
        NODES6 + 'flannel: {ipv6: {subnets: {n1: §"fd00:9::/64"}}}\n',
        "inside flannel's network fd00:100:96::/48",
    ),
    "first IPv6 subnet": bad(
        NODES6 + 'flannel: {ipv6: {subnets: {n1: §"fd00:100:96::/64"}}}\n', "than the first"
    ),
    "IPv6 subnet length": bad(
        NODES6 + "flannel: {ipv6: {subnet-len: §49}}\n", "50 or more|four subnets"
    ),
    "IPv6 subnet of a stranger": bad(
        NODES6 + 'flannel: {ipv6: {subnets: {§n9: "fd00:100:96:9::/64"}}}\n', "name of a node|n9"
    ),
    "public IPv6 address with host-gw": bad(
        NODES6 + 'flannel: {backend: host-gw, ipv6: {§public-ip: {n1: "2001:db8::1"}}}\n',
        "no public-ip with",
    ),
    "public IPv6 address of the other node": bad(
        NODES6 + 'flannel: {ipv6: {public-ip: {n1: §"fd00:1::3"}}}\n', "no other node has|of n2"
    ),
    "MTU without room for IPv6": bad(
        NODES6 + "flannel: {mtu: §1320, ipv6: {}}\n", "1280 bytes|1270 bytes|by 10"
    ),
    "link without room for IPv6": bad(
        NODES6.replace('/64"', '/64", mtu: 1340') + "flannel: {§ipv6: {}}\n",
        "1270 bytes|by 10 bytes",
    ),
    "daemon.json's own IPv6": bad(
        NODES6.replace("roles: [docker,", "docker: {daemon: {§ipv6: true}}, roles: [docker,")
        + "flannel: {ipv6: {}}\n",
        "on flannel nodes|'ipv6' for n2",
    ),
    "public address with host-gw": bad(
        NODES + "flannel: {backend: host-gw, §public-ip: {n1: 10.168.0.9}}\n", "no public-ip with"
    ),
    "public address of a stranger": bad(
        NODES + "flannel: {public-ip: {§n9: 10.168.0.9}}\n", "the name of a node|n9"
    ),
    "public address without flannel": bad(
        NODES + "flannel: {public-ip: {§out: 10.168.0.9}}\n", "role flannel|'out'"
    ),
    "public address of the other node": bad(
        NODES + "flannel: {public-ip: {n1: §10.168.0.3}}\n", "no other node has|that of n2"
    ),
    "two of one public address": bad(
        NODES + "flannel: {public-ip: {n1: 10.9.0.1, n2: §10.9.0.1}}\n", "no other node|that of n1"
    ),
    "public address with a prefix": bad(
        NODES + "flannel: {public-ip: {n1: §10.9.0.1/24}}\n", "an IPv4 address|10.9.0.1/24"
    ),
    "subnet length too short": bad(
        NODES + "flannel: {subnet-len: §17}\n", "18 or more|17|four subnets in 100.96.0.0/16"
    ),
    "subnet of another length": bad(
        NODES + "flannel: {subnet-len: 26, subnets: {n1: §100.96.1.0/24}}\n",
        "one size, /26 as subnet-len says|100.96.1.0/24",
    ),
    "renewal after the lease's end": bad(
        NODES + "flannel: {subnet-lease-renew-margin: §1440}\n", "from 1 to 1439|1440"
    ),
    "further network without a network": bad(
        NODES + "flannel: {networks: {blue: §{}}}\n", "the key 'network'|none"
    ),
    "further network by udp": bad(
        NODES + "flannel: {networks: {blue: {network: 10.9.0.0/16, backend: §udp}}}\n",
        "vxlan, host-gw|'udp'",
    ),
    "VNI of host-gw": bad(
        NODES + "flannel: {networks: {b: {network: 10.9.0.0/16, backend: host-gw, §vni: 4}}}\n",
        "no vni with host-gw",
    ),
    "two networks of one VNI": bad(
        NODES + "flannel: {networks: {blue: {network: 10.9.0.0/16, vni: §1}}}\n",
        "a VNI of its own|1, that of flannel",
    ),
    "networks of flannel that overlap": bad(
        NODES + "flannel: {networks: {blue: {network: §100.96.128.0/17}}}\n",
        "networks of flannel that do not overlap|100.96.0.0/16 of flannel",
    ),
    "subnet outside of its network": bad(
        NODES + "flannel: {networks: {b: {network: 10.9.0.0/16, subnets: {n1: §10.8.1.0/24}}}}\n",
        "inside flannel's network 10.9.0.0/16",
    ),
    "open door as text": bad(
        NODES + "flannel: {allow-direct-routing: §no}\n", "true or false|'no'"
    ),
    "lan overlaps": bad(
        (NODES + "flannel: {network: 10.0.0.0/8}\n").replace("10.168.0.0", "§10.168.0.0"),
        "apart from flannel|10.0.0.0/8",
    ),
    "network too small": bad(NODES + "flannel: {network: §100.96.0.0/29}\n", "8 to 28"),
    "network full": bad(
        (NODES + "flannel: {network: §100.96.0.0/24}\n").replace(
            "  out:",
            "  n3: {networks: {lan: 10.168.0.4}, roles: [flannel]}\n"
            "  n4: {networks: {lan: 10.168.0.5}, roles: [flannel]}\n  out:",
        ),
        "4 flannel nodes|room for 3 of /26",
    ),
    "subnet outside": bad(
        NODES + "flannel: {subnets: {n1: §100.97.1.0/24}}\n", "inside flannel's network|100.97"
    ),
    "subnet too large": bad(NODES + "flannel: {subnets: {n1: §100.96.128.0/17}}\n", "/18 or small"),
    "first subnet": bad(NODES + "flannel: {subnets: {n1: §100.96.0.0/24}}\n", "first|use the next"),
    "same subnet": bad(
        NODES + "flannel: {subnets: {n1: 100.96.1.0/24, n2: §100.96.1.0/24}}\n",
        "flannel subnets that do not overlap|subnet of n1",
    ),
    "overlapping, of two sizes": bad(
        NODES + "flannel: {subnets: {n1: 100.96.2.0/23, n2: §§100.96.3.0/24}}\n",
        "overlap",
        "one size, /23",
    ),
    "unknown node": bad(NODES + "flannel: {subnets: {§n9: 100.96.1.0/24}}\n", "name of a node"),
    "node without flannel": bad(
        NODES + "flannel: {subnets: {§out: 100.96.1.0/24}}\n", "role flannel|'out'"
    ),
    "host-gw over a router": bad(
        "name: t\nnetworks: {a: {subnet: 10.1.0.0/24}, b: {subnet: 10.2.0.0/24}}\nnodes:\n"
        "  n1: {networks: {a: 10.1.0.2}, roles: [etcd, flannel]}\n"
        "  n2: {networks: {§b: 10.2.0.2}, roles: [flannel]}\n"
        "flannel: {backend: host-gw}\n",
        "all flannel nodes on a|n2 on b",
    ),
    "no way to etcd": bad(
        "name: t\nnetworks: {a: {subnet: 10.1.0.0/24}, b: {subnet: 10.2.0.0/24}}\nnodes:\n"
        "  n1: {networks: {a: 10.1.0.2}, roles: [etcd, flannel]}\n"
        "  n2: {networks: {§b: 10.2.0.2}, roles: [flannel]}\n"
        "flannel: {backend: vxlan}\n",
        "a route from n2 to n1 at 10.1.0.2 on a|interface",
    ),
    "a way to etcd, and none back": bad(
        "name: t\nnetworks: {a: {subnet: 10.1.0.0/24}, b: {subnet: 10.2.0.0/24},"
        " c: {subnet: 10.3.0.0/24}}\nnodes:\n"
        "  n1: {networks: {c: 10.3.0.2, §a: 10.1.0.2}, roles: [etcd, flannel]}\n"
        "  n2: {networks: {b: 10.2.0.2}, roles: [flannel]}\n"
        "  g: {networks: {c: 10.3.0.1}, gateway: true}\n"
        "  h: {networks: {b: 10.2.0.1, a: 10.1.0.1}, gateway: true}\n"
        "flannel: {interface: {n1: a}}\n",
        "a route from n1 to n2",
    ),
    "interface nowhere": bad(
        FLANNEL.replace("flannel: {", "flannel: {interface: §wan, ", 1), "a network that n1 is on"
    ),
    "interface of a node nowhere": bad(
        FLANNEL.replace("flannel: {", "flannel: {interface: {n1: §eth1}, ", 1), "it is on"
    ),
    "interface of nobody": bad(
        FLANNEL.replace("flannel: {", "flannel: {interface: {§n9: eth0}, ", 1), "a node of flannel"
    ),
    "interface number": bad(
        FLANNEL.replace("flannel: {", "flannel: {interface: §7, ", 1), "the name of a network"
    ),
    "bip outside the subnet": bad(
        FLANNEL + "docker: {bip: {n1: §100.96.9.1/24}}\n", "inside the flannel subnet of n1"
    ),
    "bip for all, no plain node": bad(
        FLANNEL + "docker: {bip: §10.1.27.1/24}\n", "without flannel"
    ),
}

KUBERNETES = {
    "nobody has the role": bad(
        LAN + "nodes: {n1: {}}\n§kubernetes: {}\n", "a node with the role kubernetes|none"
    ),
    "control plane elsewhere": bad(
        CLUSTER + "kubernetes: {control-plane: §out}\n", "with the role kubernetes|'out'|add the"
    ),
    "control plane nowhere": bad(
        CLUSTER + "kubernetes: {control-plane: §n3}\n", "the name of a node|'n3'"
    ),
    "proxy": bad(CLUSTER + "kubernetes: {proxy: §ipvs}\n", "nftables, iptables|'ipvs'"),
    "plugin": bad(CLUSTER + "kubernetes: {cni: §flanel}\n", "'flanel'|mean 'flannel'"),
    "arguments of a stranger": bad(
        CLUSTER + "kubernetes: {arguments: {§kublet: {}}}\n", "'kublet'|mean 'kubelet'"
    ),
    "a flag with its hyphens": bad(
        CLUSTER + "kubernetes: {arguments: {kubelet: {§--max-pods: 5}}}\n", "a flag|write max-pods"
    ),
    "a flag with a list": bad(
        CLUSTER + "kubernetes: {arguments: {kubelet: {pods: §[a]}}}\n", "text, a number|a list as"
    ),
    "no list of files": bad(CLUSTER + "kubernetes: {apply: §{a: b}}\n", "path|"),
    "add-on": bad(CLUSTER + "kubernetes: {add-ons: [§dsn]}\n", "'dsn'|mean 'dns'"),
    "add-on twice": bad(CLUSTER + "kubernetes: {add-ons: [dns, §dns]}\n", "each add-on once"),
    "Pods on the nodes' network": bad(
        CLUSTER + "kubernetes: {pods: §10.168.0.0/16}\n", "overlaps with 10.168.0.0/24 of lan"
    ),
    "Services among the Pods": bad(
        CLUSTER + "kubernetes: {services: §100.96.128.0/17}\n", "overlaps with 100.96.0.0/16"
    ),
    "Pods in too small a network": bad(
        CLUSTER + "kubernetes: {pods: §10.1.0.0/25}\n", "8 to 24 bits"
    ),
    "too many nodes": bad(
        CLUSTER + "kubernetes: {pods: §10.1.0.0/23}\n", "a range for each of 2 nodes|room for 1"
    ),
    "cluster with IPv6 by another plugin": bad(
        CLUSTER6 + "kubernetes: {cni: bgp, §ipv6: {}}\n", "no ipv6 with bgp|IPv4 alone"
    ),
    "cluster with IPv6 by udp": bad(
        CLUSTER6 + "kubernetes: {backend: udp, §ipv6: {}}\n", "no ipv6 with udp|vxlan or host-gw"
    ),
    "cluster with IPv6 on a network without it": bad(
        CLUSTER.replace("n1: {networks: {lan: 10", "n1: {networks: {§lan: 10").replace(
            "n2: {networks: {lan: 10", "n2: {networks: {§lan: 10"
        )
        + "kubernetes: {ipv6: {}}\n",
        "an IPv6 address of n1 on lan, for the cluster's ipv6|10.168.0.2|subnet6",
        "an IPv6 address of n2 on lan, for the cluster's ipv6|10.168.0.3|subnet6",
    ),
    "IPv6 Pods on the nodes' network": bad(
        CLUSTER6 + 'kubernetes: {ipv6: {pods: §"fd00:1::/48"}}\n',
        "overlaps with fd00:1::/64 of lan",
    ),
    "IPv6 Services among the Pods": bad(
        CLUSTER6 + 'kubernetes: {ipv6: {services: §"fd00:100:96::/112"}}\n',
        "overlaps with fd00:100",
    ),
    "IPv6 Services in too large a network": bad(
        CLUSTER6 + 'kubernetes: {ipv6: {services: §"fd00:9::/64"}}\n', "108 to 120 bits"
    ),
    "IPv6 Pods in too large a network": bad(
        CLUSTER6 + 'kubernetes: {ipv6: {pods: §"fd00::/40"}}\n', "48 to 62 bits"
    ),
    "IPv6 range outside": bad(
        CLUSTER6 + 'kubernetes: {ipv6: {ranges: {n2: §"fd00:9::/64"}}}\n', "inside|fd00:9::/64"
    ),
    "IPv6 range of a stranger": bad(
        CLUSTER6 + 'kubernetes: {ipv6: {ranges: {§out: "fd00:100:96:7::/64"}}}\n', "role kubernetes"
    ),
    "range of a stranger": bad(
        CLUSTER + "kubernetes: {ranges: {§out: 100.96.7.0/24}}\n", "with the role kubernetes|'out'"
    ),
    "range outside": bad(
        CLUSTER + "kubernetes: {ranges: {n2: §10.1.7.0/24}}\n", "inside|100.96.0.0/16|10.1.7.0/24"
    ),
    "one range twice": bad(
        CLUSTER + "kubernetes: {ranges: {n1: 100.96.7.0/24, n2: §100.96.7.0/24}}\n", "of n1"
    ),
    "no address": bad(
        LAN + "nodes: {§n1: {roles: [kubernetes]}}\n",
        "a network for a node with the role kubernetes",
    ),
    "Docker beside it": bad(
        LAN + "nodes: {n1: {networks: {lan: 10.168.0.2}, roles: [kubernetes, §docker]}}\n",
        "no docker on a node of the cluster|containerd",
    ),
    "virtual machines": bad(
        LAN + "nodes: {n1: {networks: {lan: 10.168.0.2}, roles: [§kubernetes], provider: qemu}}\n",
        "provider netns|n1 by qemu",
    ),
    "etcd beside it": bad(
        LAN + "nodes: {n1: {networks: {lan: 10.168.0.2}, roles: [§etcd, kubernetes]}}\n",
        "no etcd on a node of the cluster|its own etcd",
    ),
    "host-gw over a router": bad(
        "name: t\nnetworks: {a: {subnet: 10.1.0.0/24}, b: {subnet: 10.2.0.0/24}}\nnodes:\n"
        "  n1: {networks: {a: 10.1.0.2}, roles: [kubernetes]}\n"
        "  n2: {networks: {§b: 10.2.0.2}, roles: [kubernetes]}\n"
        "kubernetes: {backend: host-gw}\n",
        "on a|n2 on b|host-gw makes no tunnel|another backend",
    ),
    "BGP over a router": bad(
        "name: t\nnetworks: {a: {subnet: 10.1.0.0/24}, b: {subnet: 10.2.0.0/24}}\nnodes:\n"
        "  n1: {networks: {a: 10.1.0.2}, roles: [kubernetes]}\n"
        "  n2: {networks: {§b: 10.2.0.2}, roles: [kubernetes]}\n"
        "kubernetes: {cni: bgp}\n",
        "on a|n2 on b|bgp makes no tunnel|another network plugin",
    ),
    "Calico over a router": bad(
        "name: t\nnetworks: {a: {subnet: 10.1.0.0/24}, b: {subnet: 10.2.0.0/24}}\nnodes:\n"
        "  n1: {networks: {a: 10.1.0.2}, roles: [kubernetes]}\n"
        "  n2: {networks: {§b: 10.2.0.2}, roles: [kubernetes]}\n"
        "kubernetes: {cni: calico}\n",
        "on a|n2 on b|calico makes no tunnel|another network plugin",
    ),
}

CONTAINERS = {
    "bip is a network": bad(DOCKER + "docker: {bip: §172.17.0.0/16}\n", "a host's address|itself"),
    "bip without prefix": bad(DOCKER + "docker: {bip: §172.17.0.1}\n", "add the prefix"),
    "bip too small": bad(DOCKER + "docker: {bip: §172.17.0.1/32}\n", "at most 30 bits"),
    "bip type": bad(DOCKER + "docker: {bip: §[a]}\n", "IPv4 address|a list"),
    "bip unknown node": bad(DOCKER + "docker: {bip: {§n2: 10.1.27.1/24}}\n", "known: n1"),
    "bip no docker": bad(
        DOCKER + "  n2: {}\ndocker: {bip: {§n2: 10.1.27.1/24}}\n", "role docker|'n2'"
    ),
    "engine": bad(DOCKER + "docker: {engine: §27}\n", "an engine: 20.10, 24, 26|integer 27|known"),
    "engine as text": bad(DOCKER + "docker: {engine: §29.1}\n", "an engine|number 29.1"),
    "engine by name": bad(DOCKER + "docker: {engine: §twenty}\n", "an engine|'twenty'"),
    "engine true": bad(DOCKER + "docker: {engine: §true}\n", "an engine|boolean"),
    "engine list": bad(DOCKER + "docker: {engine: §[29]}\n", "an engine|a list"),
    "firewall": bad(DOCKER + "docker: {firewall: §iptables-ntf}\n", "mean 'iptables-nft'"),
    "nftables of engine 20.10": bad(
        DOCKER + "docker: {firewall: §nftables}\n", "engine 20.10|nftables|engine: 29|--docker 29"
    ),
    "engine without docker": bad(
        LAN + "nodes: {a: {}}\ndocker: {§engine: 29, §firewall: iptables-nft}\n",
        "a node with the role docker|none",
    ),
    "bip in the lan": bad(
        DOCKER + "docker: {bip: §10.168.0.1/16}\n", "docker0|10.168.0.0/24 of lan"
    ),
    "lan in the default bip": bad(
        "name: t\nnetworks: {lan: {subnet: §172.17.3.0/24}}\nnodes:\n"
        "  a: {networks: {lan: 172.17.3.2}, roles: [docker]}\n"
        "  b: {networks: {lan: 172.17.3.3}, roles: [docker]}\n",
        "apart|172.17.0.0/16 of docker0 on a|docker: {bip",
    ),
    "bip in flannel's network": bad(
        FLANNEL.replace("  out:", "  n3: {networks: {lan: 10.168.0.9}, roles: [docker]}\n  out:")
        + "docker: {bip: §100.96.7.1/24}\n",
        "overlaps with 100.96.0.0/16 of flannel",
    ),
    "no node": bad(DOCKER + "containers:\n  c1: §{}\n", "key 'node'"),
    "unknown node": bad(DOCKER + "containers:\n  c1: {node: §n2}\n", "name of a node|known: n1"),
    "a container is text": bad(DOCKER + "containers:\n  c1: §n1\n", "a mapping|'n1'"),
    "no docker": bad(DOCKER + "  n2: {}\ncontainers:\n  c1: {node: §n2}\n", "role docker|'n2'"),
    "node type": bad(DOCKER + "containers:\n  c1: {node: §1}\n", "name of a node|integer"),
    "name": bad(DOCKER + "containers:\n  §my_c: {node: n1}\n", "RFC 1123|'my-c'"),
    "short name": bad(DOCKER + "containers:\n  §c: {node: n1}\n", "two characters"),
    "long name": bad(DOCKER + f"containers:\n  §{'c' * 64}: {{node: n1}}\n", "at most 63"),
    "image": bad(DOCKER + "containers:\n  c1: {node: n1, image: §Nginx}\n", "an image|lower case"),
    "image with blank": bad(DOCKER + "containers:\n  c1: {node: n1, image: §a b}\n", "an image"),
    "mode": bad(DOCKER + "containers:\n  c1: {node: n1, network: §lan}\n", "bridge, host, none"),
    "container mode, no name": bad(
        DOCKER + 'containers:\n  c1: {node: n1, network: §"container:"}\n', "container:NAME"
    ),
    "container mode, unknown": bad(
        DOCKER + 'containers:\n  c1: {node: n1, network: §"container:c2"}\n', "name of a container"
    ),
    "container mode, itself": bad(
        DOCKER + 'containers:\n  c1: {node: n1, network: §"container:c1"}\n', "another|itself"
    ),
    "container mode, a ring": bad(
        DOCKER + 'containers:\n  c1: {node: n1, network: §"container:c2"}\n'
        '  c2: {node: n1, network: §"container:c1"}\n',
        "network of its own|c2, which shares that of c1",
        "c1, which shares that of c2",
    ),
    "container mode, other node": bad(
        FLANNEL + 'containers:\n  c1: {node: n1, network: §"container:c2"}\n  c2: {node: n2}\n',
        "same node, n1|c2 on n2",
    ),
    "port alone": bad(DOCKER + "containers:\n  c1: {node: n1, publish: [§80]}\n", "host_port|80"),
    "port zero": bad(DOCKER + 'containers:\n  c1: {node: n1, publish: [§"0:80"]}\n', "1 to 65535"),
    "port large": bad(DOCKER + 'containers:\n  c1: {node: n1, publish: [§"80:65536"]}\n', "65536"),
    "port in base 60": bad(
        DOCKER + "containers:\n  c1: {node: n1, publish: [§22:22]}\n", "base 60|quote it"
    ),
    "memory of a container": bad(
        DOCKER + "containers: {c1: {node: n1, mem_limit: §5m}}\n", "6M or more|'5m'"
    ),
    "protocol": bad(DOCKER + 'containers:\n  c1: {node: n1, publish: [§"1:1/dccp"]}\n', "/udp"),
    "no list": bad(DOCKER + 'containers:\n  c1: {node: n1, publish: §"1:1"}\n', "list of ports"),
    "bad address": bad(
        DOCKER + 'containers:\n  c1: {node: n1, publish: [§"10.0.0.256:1:1"]}\n', "an IP address"
    ),
    "foreign address": bad(
        DOCKER + 'containers:\n  c1: {node: n1, publish: [§"10.168.0.3:1:1"]}\n',
        "an address of n1|10.168.0.2, 172.17.0.1",
    ),
    "port twice": bad(
        DOCKER + 'containers:\n  c1: {node: n1, publish: ["8080:80"]}\n'
        '  c2: {node: n1, publish: [§"10.168.0.2:8080:80", "8080:80/udp"]}\n',
        "published once|8080/tcp again, published for c1",
    ),
    "port twice in one": bad(
        DOCKER + 'containers:\n  c1: {node: n1, publish: ["1:1", §"1:2"]}\n', "1/tcp again"
    ),
    "port and no network": bad(
        DOCKER + 'containers:\n  c1: {node: n1, network: none, §publish: ["1:1"]}\n', "network none"
    ),
    "port and host network": bad(
        DOCKER + 'containers:\n  c1: {node: n1, network: host, §publish: ["1:1"]}\n', "network host"
    ),
    "command text": bad(DOCKER + "containers:\n  c1: {node: n1, command: §ls}\n", "a list"),
    "command empty": bad(DOCKER + "containers:\n  c1: {node: n1, command: §[]}\n", "image's own"),
    "command number": bad(
        DOCKER + "containers:\n  c1: {node: n1, command: [sleep, §3600]}\n", 'quote it: "3600"'
    ),
    "expect a word": bad(DOCKER + "containers:\n  c1: {node: n1, expect: §ended}\n", "exit 0"),
    "expect too much": bad(DOCKER + "containers:\n  c1: {node: n1, expect: §exit 256}\n", "255"),
    "expect and health": bad(
        DOCKER + "containers:\n  c1: {node: n1, expect: exit 0, §healthcheck: {test: x}}\n",
        "remove",
    ),
    "expect and ready": bad(
        DOCKER + "containers:\n  c1: {node: n1, expect: exit 0, §ready: {port: 80}}\n", "remove it"
    ),
    "the network of one that ends": bad(
        DOCKER + "containers:\n  c1: {node: n1, expect: exit 0}\n"
        "  c2: {node: n1, network: §container:c1}\n",
        "keeps running",
    ),
    "health of no unit": bad(
        DOCKER + "containers:\n  c1: {node: n1, healthcheck: {interval: §5}}\n", "unit: 5s"
    ),
    "health of no time": bad(
        DOCKER + "containers:\n  c1: {node: n1, healthcheck: {timeout: §0s}}\n", "a duration from"
    ),
    "health for ages": bad(
        DOCKER + "containers:\n  c1: {node: n1, healthcheck: {timeout: §25h}}\n", "24h"
    ),
    "health without CMD": bad(
        DOCKER + "containers:\n  c1: {node: n1, healthcheck: {test: §[curl, localhost]}}\n", "CMD"
    ),
    "health of nothing": bad(
        DOCKER + "containers:\n  c1: {node: n1, healthcheck: {test: §[CMD]}}\n", "CMD"
    ),
    "health empty": bad(
        DOCKER + 'containers:\n  c1: {node: n1, healthcheck: {test: §""}}\n', "the image's own"
    ),
    "health retries": bad(
        DOCKER + "containers:\n  c1: {node: n1, healthcheck: {retries: §0}}\n", "from 1"
    ),
    "ready for nothing": bad(DOCKER + "containers:\n  c1: {node: n1, ready: §{}}\n", "a port or"),
    "ready on no port": bad(
        DOCKER + "containers:\n  c1: {node: n1, ready: {port: §0}}\n", "1 to 65535"
    ),
    "ready on too high a port": bad(
        DOCKER + "containers:\n  c1: {node: n1, ready: {port: §70000/udp}}\n", "1 to 65535"
    ),
    "ready by a word": bad(
        DOCKER + "containers:\n  c1: {node: n1, ready: {command: §ls}}\n", "a list"
    ),
    "env number": bad(DOCKER + "containers:\n  c1: {node: n1, env: {PORT: §80}}\n", 'it: "80"'),
    "env name": bad(DOCKER + 'containers:\n  c1: {node: n1, env: {§a-b: "1"}}\n', "a variable"),
    "env list": bad(
        DOCKER + "containers:\n  c1: {node: n1, env: §[A=1]}\n", "mapping of variables"
    ),
}

NAMESPACES = {
    "namespace unknown node": bad(NETNS.replace("ns3: {node: i}", "ns3: {node: §j}"), "of a node"),
    "bridge unknown node": bad(NETNS.replace("br1: {node: i}", "br1: {node: §j}"), "of a node"),
    "namespace no role": bad(
        DOCKER + "namespaces:\n  ns1: {node: §n1}\n", "role namespaces|add the role"
    ),
    "namespace name": bad(NETNS.replace("ns3:", "§../x:"), "a name for a namespace"),
    "bridge name": bad(NETNS.replace("br1:", "§a/b:"), "a name for a bridge"),
    "bridge name too long": bad(NETNS.replace("br1:", "§abcdefghijklmnop:"), "at most 15|16"),
    "bridge is lo": bad(NETNS.replace("br1:", "§lo:"), "loopback"),
    "bridge is all": bad(NETNS.replace("br1:", "§all:"), "net.ipv4.conf"),
    "interface is default": bad(
        veth("{name: a, namespace: ns1}", "{name: §default, namespace: ns2}", "h"), "conf"
    ),
    "interface is an index": bad(
        veth("{name: a, namespace: ns1}", "{name: §if2, namespace: ns2}", "h"), "ip(8)"
    ),
    "unknown node": bad(
        veth("{name: a, namespace: ns1}", "{name: b, namespace: ns2}", "§k"), "name of a node"
    ),
    "one end": bad(
        NETNS + "veths:\n  - {node: h, ends: §[{name: a, namespace: ns1}]}\n", "two ends"
    ),
    "no ends": bad(NETNS + "veths:\n  - §{node: h}\n", "key 'ends'"),
    "no list": bad(NETNS + "veths: §{node: h}\n", "list of pairs"),
    "a pair is text": bad(NETNS + "veths: [§a]\n", "a mapping|'a'"),
    "a namespace is text": bad(NETNS.replace("ns3: {node: i}", "ns3: §i"), "a mapping|'i'"),
    "a bridge is text": bad(NETNS.replace("br1: {node: i}", "br1: §i"), "a mapping|'i'"),
    "end is text": bad(veth("§a", "{name: b, namespace: ns2}"), "a mapping|'a'"),
    "no name": bad(veth("§{namespace: ns1}", "{name: b, namespace: ns2}"), "key 'name'"),
    "name too long": bad(
        veth("{name: §abcdefghijklmnop, namespace: ns1}", "{name: b, namespace: ns2}"), "at most 15"
    ),
    "name with slash": bad(
        veth("{name: §a/b, namespace: ns1}", "{name: b, namespace: ns2}"), "for an interface"
    ),
    "neither": bad(veth("§{name: a}", "{name: b, namespace: ns2}"), "either|neither"),
    "both": bad(
        veth("§{name: a, namespace: ns1, bridge: br0}", "{name: b, namespace: ns2}"), "either|both"
    ),
    "address on a bridge": bad(
        veth("{name: a, bridge: br0, §address: 10.0.0.1/24}", "{name: b, namespace: ns2}"),
        "in a namespace only|remove it",
    ),
    "address without prefix": bad(
        veth("{name: a, namespace: ns1, address: §10.0.0.1}", "{name: b, namespace: ns2}"),
        "add the prefix",
    ),
    "broadcast": bad(
        veth("{name: a, namespace: ns1, address: §10.0.0.255/24}", "{name: b, namespace: ns2}"),
        "a host's address|broadcast",
    ),
    "unknown namespace": bad(
        veth("{name: a, namespace: §ns8}", "{name: b, bridge: §br8}"),
        "of a namespace|known: ns1",
        "of a bridge|known: br",
    ),
    "namespace elsewhere": bad(
        veth("{name: a, namespace: §ns3}", "{name: b, bridge: §br1}"),
        "a namespace on the same node, h|ns3 on i",
        "a bridge on the same node, h|br1 on i",
    ),
    "a loop": bad(veth("{name: a, bridge: br0}", "{name: b, bridge: §br0}"), "one end|both in br0"),
    "name taken by a bridge": bad(
        veth("{name: §br0, bridge: br0}", "{name: b, namespace: ns2}"), "once in h|'br0'"
    ),
    "name taken in the namespace": bad(
        veth("{name: a, namespace: ns1}", "{name: §a, namespace: ns1}"), "once in ns1"
    ),
    "address twice": bad(
        veth(
            "{name: a, namespace: ns1, address: 10.0.0.1/24}",
            "{name: a, namespace: ns2, address: §10.0.0.1/24}",
        ),
        "each address of a segment once|again",
    ),
    "docker0 is taken": bad(
        DOCKER.replace("[docker]", "[docker, namespaces]") + "bridges:\n  §docker0: {node: n1}\n",
        "Docker's bridge",
    ),
    "eth0 is taken": bad(
        DOCKER.replace("[docker]", "[docker, namespaces]") + "bridges:\n  §eth0: {node: n1}\n",
        "the node's own",
    ),
}

_NODE = LAN + "nodes:\n  n1: {networks: {lan: 10.168.0.2}"
_ROUTER = _NODE + ", roles: [frr], frr"
WAYS = {
    "next hop beyond the link": bad(
        f"{_NODE}, routes: [§10.2.0.0/16 via 10.99.0.1 dev eth0]}}\n",
        "a next hop on a subnet|10.99.0.1",
    ),
    "next hop on an unknown link": bad(
        f"{_NODE}, routes: [§10.2.0.0/16 via 10.99.0.1 dev eth7]}}\n", "a link of|'eth7'"
    ),
    "link with one end": bad(
        'name: t\nlinks: [{ends: §["a:p0"]}]\nnodes: {a: {}}\n', "two ends|1|a link has two ends"
    ),
}

#: Lists whose schema has ``uniqueItems``.
REPEATED = {
    "package": bad(f"{_NODE}, packages: [iperf3, tcpdump, §iperf3]}}\n", "once|'iperf3' again"),
    "route": bad(
        f'{_NODE}, routes: ["10.2.0.0/16 via 10.168.0.3", §"10.2.0.0/16 via 10.168.0.3"]}}\n',
        "once|10.2.0.0/16 via 10.168.0.3' again",
    ),
    "rule": bad(f'{_NODE}, rules: ["lookup 100", §"lookup 100"]}}\n', "once|again"),
    "bind": bad(f'{_NODE}, binds: ["/etc:/srv/x", §"/etc:/srv/x"]}}\n', "once|again"),
    "published port": bad(
        DOCKER + 'containers: {c1: {node: n1, publish: ["80:80", §"80:80"]}}\n', "once|again"
    ),
    "image": bad(DOCKER + "docker: {images: [alpine, §alpine]}\n", "once|'alpine' again"),
    "manager": bad(DOCKER + "docker: {swarm: [n1, §n1]}\n", "once|'n1' again"),
    "node of a Docker network": bad(
        DOCKER + "docker: {networks: {web: {nodes: [n1, §n1]}}}\n", "once|'n1' again"
    ),
    "image of a cluster": bad(CLUSTER + "kubernetes: {images: [alpine, §alpine]}\n", "once|again"),
    "link of OSPF": bad(f"{_ROUTER}: {{ospf: {{interfaces: [lan, §lan]}}}}}}\n", "once|again"),
    "prefix of OSPF": bad(
        f"{_ROUTER}: {{ospf: {{networks: [10.0.0.0/8, §10.0.0.0/8]}}}}}}\n", "once|again"
    ),
    "prefix of BGP": bad(
        f"{_ROUTER}: {{bgp: {{asn: 1, networks: [10.0.0.0/8, §10.0.0.0/8]}}}}}}\n", "once|again"
    ),
}

TABLE = {
    f"{part}: {name}": case
    for part, cases in {
        "syntax": SYNTAX,
        "form": FORM,
        "networks": NETWORKS,
        "overlay": OVERLAY,
        "ways": WAYS,
        "kubernetes": KUBERNETES,
        "containers": CONTAINERS,
        "namespaces": NAMESPACES,
        "repeated": REPEATED,
    }.items()
    for name, case in cases.items()
}


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(TopologyError) as caught:
        load_text(text, "t.yaml")
    return caught.value.problems


@pytest.mark.parametrize("case", TABLE.values(), ids=TABLE.keys())
def test_each_problem_is_reported_at_its_place(case: Bad) -> None:
    found = problems(case.plain)
    report = "\n".join(p.format("t.yaml") for p in found)
    assert [(p.line, p.column) for p in found] == case.places, report
    for problem, words in zip(found, case.words, strict=True):
        for word in words:
            assert word in problem.format("t.yaml"), report
        assert problem.wanted
        assert problem.seen
        assert problem.hint


def test_all_problems_of_a_file_at_once() -> None:
    text = (
        "name: My Lab\n"
        "provdier: netns\n"
        "networks:\n"
        "  lan: {subnet: 10.168.0.1/24}\n"
        "nodes:\n"
        "  node1: {networks: {lan: 10.168.0.2}, roles: [etcd, dokcer, flannel]}\n"
        "  node2: {networks: {lam: 10.168.0.3}, roles: [docker], cpus: 0}\n"
        "flannel: {backend: vxlna, subnets: {node2: 100.96.1.0/24}}\n"
        "containers:\n"
        "  web: {node: node3, publish: [80], network: none}\n"
        "  web: {node: node1}\n"
        "  db: {node: node1, image: UPPER}\n"
    )
    places = [(p.line, p.column) for p in problems(text)]
    assert places == [
        (1, 7), (2, 1), (4, 17), (6, 54), (7, 22), (7, 63), (8, 20), (8, 37),
        (10, 15), (10, 32), (11, 3), (12, 28),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        DOCKER + "docker: {engine: twenty, firewall: nftables}\n",
        DOCKER.replace("lan: 10.168.0.2", "lan: x")
        + 'containers: {c1: {node: n1, publish: ["10.168.0.2:1:1"]}}\n',
    ],
)
def test_what_may_follow_from_a_refused_value_is_no_problem(text: str) -> None:
    assert len(problems(text)) == 1


def test_one_mistake_is_one_problem() -> None:
    """Consequences of a refused value are not reported again."""
    text = FLANNEL + "containers:\n  c1: {node: n2}\n"
    for broken in (
        text.replace("[etcd, docker, flannel]", "etcd"),
        text.replace("[docker, flannel]", "[dokcer, flannel]"),
        text.replace("roles: [docker", "rolse: [docker"),
        text.replace("{lan: 10.168.0.2}", "{lan: x}"),
        text.replace("10.168.0.0/24", "10.168.0.0"),
        text.replace("n2: {networks: {lan: 10.168.0.3}, roles: [docker, flannel]}", "n2: [docker]"),
        text.replace("flannel: {}", "flannel: []"),
        text.replace("flannel: {}", "flannel: {network: 7}"),
        text.replace("c1:", "C1:"),
    ):
        assert len(problems(broken)) == 1, broken


@pytest.mark.parametrize("text", ["", "# nothing\n", "\n\n", "---\n...\n", "\ufeff"])
def test_empty_file(text: str) -> None:
    (problem,) = problems(text)
    assert "'nodes'" in problem.wanted


def test_a_record_names_the_path_of_a_problem() -> None:
    data = {"name": "t", "nodes": {"a": {"cpus": "many"}, "b": {"roles": [7]}}}
    with pytest.raises(TopologyError) as caught:
        load_data(data, "record")
    first, second = caught.value.problems
    assert (first.line, first.column) == (0, 0)
    assert first.at == "nodes.a.cpus"
    assert second.at == "nodes.b.roles.0"
    assert str(caught.value).startswith("record: wanted a number of CPUs")


def test_a_file_of_nothing_but_problems_stays_readable() -> None:
    text = "name: t\nnodes:\n" + "".join(f"  n{i}: {{x: 1, y: 2}}\n" for i in range(5000))
    found = problems(text)
    assert len(found) == 501
    assert "fewer than 500" in found[0].wanted
