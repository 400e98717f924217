"""Checks of the claims in nat.yaml."""

import json

import pytest

pytestmark = pytest.mark.testbed_needs("plain-docker", "two-docker-nodes")


def page(observe, place, url):
    """Return the page at a URL, which names its server and its client; empty without an answer."""
    done = observe.run(place, ["curl", "-s", "-m2", url], check=False)
    return json.loads(done.stdout) if done.ok else {}


@pytest.mark.testbed_claim("outgoing-source-is-the-hosts")
def test_outgoing(lab, observe):
    found = page(observe, lab.container("web"), "http://10.168.0.3/")
    observe.holds(found["client"].startswith("10.168.0.2:"), "site saw host's address")


@pytest.mark.testbed_claim("published-port-leads-to-the-container")
def test_published(lab, observe):
    found = page(observe, lab.node("server"), "http://10.168.0.2:8080/")
    observe.holds(found.get("name") == "web", "the page is web's")


@pytest.mark.testbed_claim("published-port-keeps-the-client")
def test_client(lab, observe):
    found = page(observe, lab.node("server"), "http://10.168.0.2:8080/")
    observe.holds(found["client"].startswith("10.168.0.3:"), "web saw server's address")
