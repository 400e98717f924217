"""Kube-router: its programs, upstream's manifest, and the image that the manifest uses.

The image has upstream's name and the programs of upstream's Dockerfile that are ever called:
from Debian, where upstream's are Alpine's, and the reference CNI plugins.
"""

from __future__ import annotations

from testbed.artifacts.gomod import GoModule
from testbed.artifacts.image import APPLETS, KERNEL, NSSWITCH, PATH, Content
from testbed.artifacts.package_image import PackageImage

NAME = "cloudnativelabs/kube-router"
PLUGINS = ("bridge", "host-local", "loopback", "portmap")  # required by its installer
IPTABLES = tuple(
    f"{family}{action}"
    for family in ("iptables", "ip6tables")
    for action in ("", "-restore", "-save")
)
MODULE = GoModule(
    module="kube-router",
    packages={
        "kube-router": "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router",
        "gobgp": "github.com/osrg/gobgp/v3/cmd/gobgp",
    },
    main="github.com/cloudnativelabs/kube-router/v2",
    stamp=("github.com/cloudnativelabs/kube-router/v2/pkg/version.Version",),
    files={
        "manifest.yaml": "daemonset/kubeadm-kuberouter.yaml",
        "bin/cni-install": "build/image-assets/cni-install",
    },
)
CONTENT = Content(
    {
        "bash": ("bin/bash",),
        "busybox": ("bin/busybox",),
        "conntrack": ("usr/sbin/conntrack",),
        "containernetworking-plugins": tuple(f"usr/lib/cni/{name}" for name in PLUGINS),
        "coreutils": ("usr/bin/install",),
        "curl": ("usr/bin/curl",),
        "iproute2": ("bin/ip", "bin/ss"),
        "ipset": ("usr/sbin/ipset",),
        # It loads its rule extensions by name at run time.
        "iptables": ("usr/sbin/xtables-nft-multi", "usr/lib/*/xtables/*.so"),
    },
    applets=[name for name in APPLETS if name != "install"],
    links={
        **{f"usr/sbin/{name}": "xtables-nft-multi" for name in IPTABLES},
        "usr/libexec/cni": "../lib/cni",
    },
    files={
        "etc/nsswitch.conf": NSSWITCH,
        "etc/passwd": (0o644, "root:x:0:0:root:/root:/bin/bash\n"),
        "etc/group": (0o644, "root:x:0:\n"),
        # It adds its own routing tables.
        "etc/iproute2/rt_tables": (0o644, "255 local\n254 main\n253 default\n0 unspec\n"),
    },
    folders=(*KERNEL, "usr/local/bin", "var/lib/gobgp", "etc/iproute2"),
)
IMAGE = PackageImage(
    f"{NAME}:latest",
    CONTENT,
    {
        "Entrypoint": ["/usr/local/bin/kube-router"],
        "Env": [PATH],
        "WorkingDir": "/root",
    },
    part="kube-router",
    source=MODULE,
    copied={
        "usr/local/bin/kube-router": "bin/kube-router",
        "usr/local/bin/gobgp": "bin/gobgp",
        "usr/local/bin/cni-install": "bin/cni-install",
    },
)
