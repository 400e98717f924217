"""Nodes whose file system is a container image, beside one of this machine's files."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import archives
import pytest
from commands import Said, call

from testbed.labs.lab import Lab
from testbed.settings import settings

if TYPE_CHECKING:
    from collections.abc import Mapping

LAB = "say-image"
NAME = "say.example/box:1"
#: Mount points of every node.
OWN = {"/", "/run", "/tmp", "/var/tmp", "/etc/machine-id"}
TEXT = f"""\
name: {LAB}
provider: PROVIDER
networks: {{lan: {{subnet: 10.1.0.0/24, subnet6: "fd00:1::/64"}}, wire: {{}}}}
nodes:
  a:
    image: {NAME}
    networks:
      lan: {{addresses: [10.1.0.2, 10.1.0.12/32], name: up0, mac: "02:00:00:00:00:0a", mtu: 1400}}
      wire: {{name: eth5}}
    forward: true
    sysctls: {{net.ipv4.conf.all.rp_filter: 2}}
    routes: [10.9.0.0/16 via 10.1.0.3]
    rules: [from 10.1.0.12 lookup 100]
    files:
      /etc/app.conf: {{content: "hi\\n", mode: "0640"}}
      /usr/bin/hello: {{content: "#!/bin/sh\\necho hello $$WORD\\n", mode: "0755"}}
    BINDS
    env: {{WORD: world}}
    run: ["echo ran >> /ran"]
    services:
      web: {{command: [/entrypoint.sh], ready: {{port: 80}}}}
  b: {{networks: {{lan: 10.1.0.3, wire: {{}}}}}}
"""


def layer(files: Mapping[str, str]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755
            tar.addfile(info, io.BytesIO(content.encode()))
    return data.getvalue()


class Bed:
    def __init__(self, folder: Path, provider: str) -> None:
        self.folder = folder
        self.provider = provider

    def __call__(self, *words: str) -> Said:
        return call(self.folder, *words, env={"TESTBED_STATE": str(self.folder / "state")})

    def out(self, *words: str) -> str:
        said = self("exec", "-l", LAB, *words)
        assert said.status == 0, said.err
        return said.out

    def lab(self) -> Lab:
        return Lab(LAB, settings(state_folder=self.folder / "state"))

    def up(self) -> Said:
        images = str(self.folder / "images")
        said = self("up", str(self.folder / "lab.yaml"), "--images-from", images)
        assert said.status == 0, said.err
        return said


@pytest.fixture(scope="module", params=["netns", "containerlab"])
def bed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    provider = request.param
    folder = tmp_path_factory.mktemp("image")
    (folder / "images").mkdir()
    (folder / "shared").mkdir()
    (folder / "shared" / "file").write_text("shared\n")
    layers = [
        layer({"box/old": "old", "box/kept": "kept", "whole/one": "1"}),
        layer({"box/.wh.old": "", "whole/.wh..wh..opq": "", "whole/two": "2"}),
    ]
    archives.write(folder / "images" / "box.tar", NAME, layers)
    shared = folder / "shared"
    binds = f"binds: [{shared}:/srv/data, {shared}:/deep/below:ro]" if provider == "netns" else ""
    text = TEXT.replace("PROVIDER", provider).replace("BINDS", binds)
    (folder / "lab.yaml").write_text(text)
    found = Bed(folder, provider)
    found.up()
    yield found
    assert found("down", LAB).status == 0


def test_files_are_the_images_alone(bed: Bed) -> None:
    assert bed.out("a", "ls", "/box", "/whole").split() == ["/box:", "kept", "/whole:", "two"]
    assert bed("exec", "-l", LAB, "a", "test", "-e", "/usr/bin/apt-get").status == 1
    assert bed("exec", "-l", LAB, "b", "test", "-e", "/box").status == 1
    if bed.provider != "netns":
        return
    # Of this machine's mounts there are the binds alone.
    mounts = [line.split() for line in bed.out("a", "cat", "/proc/self/mountinfo").splitlines()]
    foreign = {line[4] for line in mounts if line[4] not in OWN and "/proc" not in line[4]}
    assert {one for one in foreign if not one.startswith(("/dev", "/sys", "/run/testbed"))} == {
        "/srv/data", "/deep/below",
    }  # fmt: skip
    assert not [line for line in mounts if line[4].startswith("/run/testbed/host")]


def test_what_a_node_writes_is_its_own(bed: Bed) -> None:
    bed.out("a", "sh", "-c", "echo own > /box/kept; rm /whole/two; mkdir /usr/own")
    assert bed.out("a", "cat", "/box/kept") == "own\n"
    bed.lab().context().provider.destroy(LAB, ["a"])
    bed.up()
    assert bed.out("a", "cat", "/box/kept", "/whole/two") == "kept2"


def test_it_is_a_node_like_others(bed: Bed) -> None:
    assert bed("status", LAB).status == 0
    assert bed.out("a", "hello") == "hello world\n"
    # The environment of this image: neither this machine's nor that of other nodes.
    assert bed.out("a", "sh", "-c", "echo $PATH") == "/usr/sbin:/usr/bin:/sbin:/bin\n"
    assert bed.out("a", "cat", "/ran") == "ran\n"
    assert bed.out("a", "cat", "/proc/1/comm") == "testbed-init\n"
    assert bed.out("a", "hostname") == "a\n"
    assert bed.out("b", "curl", "-s", "http://10.1.0.2").startswith("{")
    assert bed.out("b", "ping", "-c1", "-W5", "fd00:1::2")
    if bed.provider == "netns":
        assert bed.out("a", "cat", "/srv/data/file", "/deep/below/file") == "shared\nshared\n"
        assert bed("exec", "-l", LAB, "a", "touch", "/deep/below/file").status
    said = bed("shell", "-l", LAB, "a")
    assert said.status == 0, said.err


def test_files_go_both_ways(bed: Bed) -> None:
    (bed.folder / "given").write_text("given")
    assert bed("cp", "-l", LAB, str(bed.folder / "given"), "a:/root/given").status == 0
    assert bed("cp", "-l", LAB, "a:/root/given", str(bed.folder / "back")).status == 0
    assert (bed.folder / "back").read_text() == "given"


@pytest.mark.parametrize(
    "change",
    [
        ["ip", "link", "set", "dev", "up0", "mtu", "1300"],
        ["ip", "route", "del", "10.9.0.0/16"],
        ["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0"],
        ["ip", "link", "del", "dev", "up0"],
    ],
)
def test_what_is_lost_is_shown_and_restored(bed: Bed, change: list[str]) -> None:
    bed.lab().context().node("a").network.run(change)
    assert bed("status", LAB).status == 1
    bed.up()
    assert bed("status", LAB).status == 0
    assert "unchanged" in bed.up().out
    assert bed.out("b", "ping", "-c3", "-W5", "10.1.0.2")


def test_programs_in_its_network_leave_no_lock_on_this_machine(bed: Bed) -> None:
    if bed.provider != "netns":
        pytest.skip("programs of a cell have the cell's /run")
    place = bed.lab().context().node("a").network
    made = place.run(["sh", "-c", "iptables-legacy -w -S > /dev/null && ls -A /run"])
    assert made.stdout == "xtables.lock\n", "in a folder of its own"


def test_its_network_is_in_the_picture(bed: Bed) -> None:
    assert "up0" in bed("graph", LAB, "--json").out
