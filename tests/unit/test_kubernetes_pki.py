"""Certificates: who is who, and who is not; by real TLS between both sides."""

from __future__ import annotations

import json
import ssl
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from testbed.roles.kubernetes.pki import Authority, Pair, key_pair, kubeconfig

AUTHORITY = Authority.new("testbed")


def _context(kind: int, authority: Authority, pair: Pair, folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(kind)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authority.pair.certificate.decode())
    file = folder / "pair.pem"
    file.write_bytes(pair.certificate + pair.key)
    context.load_cert_chain(file)
    return context


def _speak(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> str:
    """Shake hands in memory; the client's name as the server has seen it."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = server.wrap_bio(up, down, server_side=True)
    there = client.wrap_bio(down, up, server_hostname=host)
    done: set[ssl.SSLObject] = set()
    for _ in range(10):
        for side in (there, here):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                pass
    assert done == {here, there}
    seen = here.getpeercert(binary_form=True)
    assert seen
    (name,) = x509.load_der_x509_certificate(seen).subject.get_attributes_for_oid(
        NameOID.COMMON_NAME
    )
    return str(name.value)


def test_both_sides_know_each_other(tmp_path: Path) -> None:
    serving = AUTHORITY.issue("api", hosts=["kubernetes", IPv4Address("10.97.0.1")])
    server = _context(ssl.PROTOCOL_TLS_SERVER, AUTHORITY, serving, tmp_path)
    asking = AUTHORITY.issue("system:node:node1", ["system:nodes"])
    client = _context(ssl.PROTOCOL_TLS_CLIENT, AUTHORITY, asking, tmp_path)
    for name in ("kubernetes", "10.97.0.1"):
        assert _speak(server, client, name) == "system:node:node1"
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        _speak(server, client, "elsewhere")


def test_nobody_of_another_authority_is_believed(tmp_path: Path) -> None:
    other = Authority.new("testbed")  # of the same name, as that of another lab is
    serving = AUTHORITY.issue("api", hosts=["kubernetes"])
    server = _context(ssl.PROTOCOL_TLS_SERVER, AUTHORITY, serving, tmp_path)
    stranger = _context(ssl.PROTOCOL_TLS_CLIENT, AUTHORITY, other.issue("x"), tmp_path)
    with pytest.raises(ssl.SSLError):
        _speak(server, stranger, "kubernetes")


def test_a_client_cannot_serve(tmp_path: Path) -> None:
    pair = AUTHORITY.issue("system:kube-proxy")
    server = _context(ssl.PROTOCOL_TLS_SERVER, AUTHORITY, pair, tmp_path)
    client = _context(ssl.PROTOCOL_TLS_CLIENT, AUTHORITY, pair, tmp_path)
    client.check_hostname = False
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        _speak(server, client, "kubernetes")


def test_an_authority_alone_may_sign_certificates() -> None:
    """Verifiers refuse a chain through any other certificate (RFC 5280, section 4.2.1.3)."""
    authority = Authority.new("another")
    pairs = (authority.pair, authority.issue("api", hosts=["kubernetes"]))
    found = [x509.load_pem_x509_certificate(pair.certificate).extensions for pair in pairs]
    usages = [one.get_extension_for_class(x509.KeyUsage).value for one in found]
    assert [one.key_cert_sign for one in usages] == [True, False]
    basics = [one.get_extension_for_class(x509.BasicConstraints).value for one in found]
    assert [one.ca for one in basics] == [True, False]


def test_groups_are_organizations() -> None:
    """As the API server reads them (kubernetes.io, "Authenticating", X.509 client certificates)."""
    subject = x509.load_pem_x509_certificate(
        AUTHORITY.issue("admin", ["system:masters", "others"]).certificate
    ).subject
    groups = subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    assert [group.value for group in groups] == ["system:masters", "others"]


def test_an_authority_is_read_back_and_signs_on() -> None:
    again = Authority.load(AUTHORITY.pair)
    issued = x509.load_pem_x509_certificate(again.issue("x").certificate)
    issued.verify_directly_issued_by(x509.load_pem_x509_certificate(AUTHORITY.pair.certificate))


@pytest.mark.parametrize("part", ["certificate", "key"])
def test_half_an_authority_is_none(part: str) -> None:
    whole = AUTHORITY.pair
    cut = {"certificate": whole.certificate, "key": whole.key} | {part: b"-----BEGIN"}
    with pytest.raises(ValueError, match=r"."):
        Authority.load(Pair(**cut))


def test_tokens_are_signed_by_a_pair_of_their_own() -> None:
    pair = key_pair()
    assert pair.certificate.startswith(b"-----BEGIN PUBLIC KEY-----")
    assert pair.key.startswith(b"-----BEGIN PRIVATE KEY-----")


def test_a_clients_file_holds_all_that_it_needs() -> None:
    client = AUTHORITY.issue("admin")
    said = json.loads(kubeconfig("https://10.168.0.2:6443", AUTHORITY.pair.certificate, client))
    assert said["clusters"][0]["cluster"]["server"] == "https://10.168.0.2:6443"
    assert said["current-context"] == said["contexts"][0]["name"]
    assert not [text for text in json.dumps(said).split() if text.startswith("/")], "no file"
