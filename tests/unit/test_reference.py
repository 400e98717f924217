"""References to images, with Docker's defaults."""

from __future__ import annotations

import re

import pytest

from testbed.artifacts.reference import Reference, full_name, local_name
from testbed.topology.keys import IMAGE

SUM = f"sha256:{'ab' * 32}"


@pytest.mark.parametrize(("text", "parts", "short"), [
    ("redis", ("docker.io", "library/redis", "latest", ""), "redis:latest"),
    ("redis:7", ("docker.io", "library/redis", "7", ""), "redis:7"),
    ("bitnami/redis", ("docker.io", "bitnami/redis", "latest", ""), "bitnami/redis:latest"),
    ("docker.io/redis:7", ("docker.io", "library/redis", "7", ""), "redis:7"),
    ("index.docker.io/a/b", ("docker.io", "a/b", "latest", ""), "a/b:latest"),
    ("localhost/a", ("localhost", "a", "latest", ""), "localhost/a:latest"),
    ("localhost:5000/a", ("localhost:5000", "a", "latest", ""), "localhost:5000/a:latest"),
    ("host:5000/a/b:1.2", ("host:5000", "a/b", "1.2", ""), "host:5000/a/b:1.2"),
    ("quay.io/a/b/c", ("quay.io", "a/b/c", "latest", ""), "quay.io/a/b/c:latest"),
    (f"redis@{SUM}", ("docker.io", "library/redis", "", SUM), f"redis@{SUM}"),
    # Docker's rule: of both, the digest counts.
    (f"h:1/a:7@{SUM}", ("h:1", "a", "7", SUM), f"h:1/a@{SUM}"),
])  # fmt: skip
def test_a_reference(text: str, parts: tuple[str, str, str, str], short: str) -> None:
    assert re.fullmatch(IMAGE, text)
    found = Reference.parse(text)
    assert (found.registry, found.repository, found.tag, found.digest) == parts
    assert found.short == short
    assert Reference.parse(found.pulled) == Reference.parse(short)
    assert Reference.parse(found.pulled).pulled == found.pulled
    assert full_name(full_name(text)) == full_name(text)


def test_a_name_on_a_node_has_a_tag() -> None:
    assert local_name(f"a/b@{SUM}") == f"a/b:{SUM.replace(':', '-')}"
    assert re.fullmatch(IMAGE, local_name(f"a/b@{SUM}"))


def test_a_tag_and_a_digest_are_two_images_on_a_node() -> None:
    """The tag may have moved: a lab can have both."""
    pinned, tagged = f"localhost:5000/a:7@{SUM}", "localhost:5000/a:7"
    assert local_name(pinned) == local_name(f"localhost:5000/a@{SUM}") != local_name(tagged)
