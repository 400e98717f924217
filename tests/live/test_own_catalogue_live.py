"""The catalogue of docs/claims.md, and a new one, on a lab of two plain nodes."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import call
from labs import by_commands
from pages import write_files

LAB = "shop"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the page's files, and a lab of its topology."""
    folder = write_files("claims.md", tmp_path_factory.mktemp("shop"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with by_commands(folder, "./shop.yaml", LAB) as made:
            yield made


def test_the_claims_beside_the_topology_are_checked(shop: Path) -> None:
    done = call(
        shop, "verify", LAB, "--html", "de.html", "--lang", "de", "--junit", "j.xml", "--json", "r"
    )
    assert done.status == 0, done.err
    run = json.loads((shop / "r").read_text())
    assert {claim["id"]: claim["verdict"] for claim in run["claims"]} == {
        "shop-client-reaches-web": "confirmed",
        "shop-jumbo-frames": "contradicted",
    }
    assert [document["title"] for document in run["documents"]] == ["Betriebshandbuch"]
    page = (shop / "de.html").read_text(encoding="utf-8")
    for text in (
        "<title>The shop&#39;s network, checked</title>",
        '<h4 lang="de">Der Client erreicht den Webserver.</h4>',
        'href="https://example.com/manual"',
        "Die MTU der Leitung ist 1500.",
    ):
        assert text in page
    # The report can be written from the record alone, in any of its languages.
    assert call(shop, "report", "r", "--html", "en.html").status == 0
    assert "Operating manual" in (shop / "en.html").read_text(encoding="utf-8")
    cases = {case.get("classname") for case in ET.parse(shop / "j.xml").iter("testcase")}
    assert cases == {f"{LAB}.manual"}


def test_each_check_is_seen_to_fail(shop: Path) -> None:
    done = call(shop, "verify", LAB, "--prove", "--json", "p", "--junit", "p.xml")
    assert done.status == 0, done.err
    (lab,) = json.loads((shop / "p").read_text())["labs"]
    assert {check["name"]: check["outcome"] for check in lab["checks"]} == {
        "shop-client-reaches-web fails under web-is-cut-off": "passed",
        "shop-jumbo-frames fails under jumbo-frames-are-on": "passed",
    }
    assert all(check["evidence"] for check in lab["checks"])
    active = json.loads(call(shop, "fault", "ls", "-l", LAB, "--json").out)
    assert active["faults"] == []
    assert call(shop, "verify", LAB, "-q").status == 0, "the lab is as it was"


def test_a_check_that_does_not_notice_is_named(shop: Path) -> None:
    path = shop / "claims" / "sabotages.yaml"
    text = path.read_text()
    try:
        path.write_text(text.replace("mtu 9000", "mtu 1400"))
        done = call(shop, "verify", LAB, "--prove", "--claim", "shop-jumbo-frames")
        assert done.status == 1
        assert "The interface of the client has an MTU of 9000." in done.out
        path.write_text(text.replace("ip link set dev eth0 mtu 9000", "exit 7"))
        done = call(shop, "verify", LAB, "--prove", "--claim", "shop-jumbo-frames")
        assert done.status == 4, done.out
        assert "jumbo-frames-are-on" in done.err
    finally:
        path.write_text(text)
    assert call(shop, "verify", LAB, "-q").status == 0


def test_plain_pytest_finds_the_catalogue(shop: Path) -> None:
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "claims"]
    done = subprocess.run(
        [*argv, "--testbed-lab", LAB], cwd=shop, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_a_new_one_fails_until_it_is_complete(shop: Path) -> None:
    (shop / "new").mkdir()
    (shop / "new" / "shop.yaml").write_text((shop / "shop.yaml").read_text())
    assert call(shop, "claims", "new", "new").status == 0
    own = ("verify", LAB, "--catalogue", "new/claims")
    assert call(shop, *own).status == 1
    assert call(shop, *own, "--prove").status == 1
    (check,) = (shop / "new" / "claims").glob("test_*.py")
    lines = check.read_text().replace("    # observe.holds", "    observe.holds").splitlines()
    check.write_text("\n".join(line for line in lines if "observe.holds(False" not in line))
    assert call(shop, *own).status == 0
    assert call(shop, *own, "--prove").status == 0
    # Both, and all of what the last run found.
    both = call(shop, *own, "--catalogue", "claims", "--json", "-")
    assert both.status == 0, both.err
    assert len(json.loads(both.out)["claims"]) == 3
    assert call(shop, "verify", LAB, "--rerun-failed").status == 0


def test_all_labs_of_the_catalogue_are_created_and_removed(shop: Path) -> None:
    done = call(shop, "verify", "--all", "--catalogue", "claims", "--json", "all")
    assert done.status == 0, done.err
    run = json.loads((shop / "all").read_text())
    assert [lab["lab"] for lab in run["labs"]] == ["shop"]
    assert run["complete"]
    assert call(shop, "ls", "--json").out.count('"all-shop"') == 0
