"""The metadata of a distribution: addresses of the project, and links of README.md."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
REPOSITORY, SITE = "https://github.com/somebody/testbed", "https://somebody.github.io/testbed/"


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The metadata that a build adds."""
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def build(repository: str = "", site: str = "") -> dict[str, Any]:
        monkeypatch.setenv("TESTBED_REPO_URL", repository)
        monkeypatch.setenv("TESTBED_SITE_URL", site)
        found: dict[str, Any] = {}
        module.Addresses(str(ROOT), {}).update(found)
        return found

    return build


def test_a_build_sets_what_the_project_leaves_open() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"readme", "urls"} <= {*project["dynamic"]}
    release = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    assert re.search(r"make dist\n\s+env:\n\s+TESTBED_REPO_URL: .*\n\s+TESTBED_SITE_URL: ", release)


def test_the_addresses_are_those_of_the_one_who_publishes(metadata: Any) -> None:
    found = metadata(REPOSITORY + "/", SITE)
    assert found["urls"]["Source"] == REPOSITORY
    assert found["urls"]["Documentation"] == SITE
    assert all(url.startswith((REPOSITORY, SITE)) for url in found["urls"].values())
    assert metadata()["urls"] == {}


def test_links_and_pictures_lead_to_the_repository(metadata: Any) -> None:
    text = metadata(REPOSITORY)["readme"]["text"]
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert f"{REPOSITORY}/raw/HEAD/docs/images/lab.svg" in links
    assert f"{REPOSITORY}/blob/HEAD/docs/claims.md" in links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    for link in links:
        if link.startswith(REPOSITORY):
            assert (ROOT / link.partition("/HEAD/")[2].partition("#")[0]).exists()
    plain = (ROOT / "README.md").read_text(encoding="utf-8")
    assert metadata()["readme"]["text"] == plain
