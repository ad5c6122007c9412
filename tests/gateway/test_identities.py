"""The file that maps identities to tenants: what it may say, and what it may not."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from servery_gateway.callers import lua
from servery_gateway.identities import CertificateIdentity, Issuer, parse, read
from servery_gateway.keys import Permission
from servery_rpc.errors import FieldInvalidError

ISSUER = """
[[issuers]]
name = "company"
issuer = "https://login.example.org"
audiences = ["servery"]
tenant = "acme"
roles_claim = ["realm", "roles"]
[issuers.roles]
scientists = { read = ["*"] }
"""
CERTIFICATE = """
[[certificates]]
uri = "spiffe://example.org/ns/shop/*"
tenant = "acme"
permissions = { infer = ["fraud-*"] }
"""


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "identities.toml"
    file.write_text(ISSUER + CERTIFICATE)
    found = read(file)
    assert found.issuers == (
        Issuer(
            name="company",
            url="https://login.example.org",
            audiences=("servery",),
            tenant="acme",
            tenant_claim=(),
            tenants={},
            roles_claim=("realm", "roles"),
            roles={"scientists": (Permission("read", ("*",)),)},
        ),
    )
    assert found.certificates == (
        CertificateIdentity(
            uri="spiffe://example.org/ns/shop/*",
            tenant="acme",
            permissions=(Permission("infer", ("fraud-*",)),),
        ),
    )
    assert found.tenants == {"acme"}


@pytest.mark.parametrize(
    ("good", "bad", "named"),
    [
        pytest.param('name = "company"\n', "", "issuers[0].name", id="no name"),
        pytest.param('"company"', '"My Company"', "issuers[0].name", id="no such name"),
        pytest.param("https://", "http://", "issuers[0].issuer", id="not secure"),
        pytest.param("https://login.example.org", "servery", "issuers[0].issuer", id="ours"),
        pytest.param('["servery"]', "[]", "issuers[0].audiences", id="no audience"),
        pytest.param('["servery"]', '"servery"', "issuers[0].audiences", id="a text for a list"),
        pytest.param('"acme"', '"Acme"', "issuers[0].tenant", id="no such tenant"),
        pytest.param('tenant = "acme"\n', "", "issuers[0].tenant", id="no tenant"),
        pytest.param(
            'tenant = "acme"\n', 'tenant_claim = "org"\n', "issuers[0].tenant", id="any tenant"
        ),
        pytest.param("read", "write", "issuers[0].roles.scientists.write", id="no such verb"),
        pytest.param('["*"]', '"*"', "issuers[0].roles.scientists.read", id="no list"),
        pytest.param('["*"]', '["A"]', "issuers[0].roles.scientists", id="no such model"),
        pytest.param('{ read = ["*"] }', '"all"', "issuers[0].roles.scientists", id="no table"),
        pytest.param('tenant = "acme"', 'tenants = 7\ntenant = "acme"', "tenants", id="a number"),
        pytest.param("audiences", "audience", "issuers[0].audience", id="unknown word"),
    ],
)
def test_what_an_issuer_cannot_be_is_named(good: str, bad: str, named: str) -> None:
    document = tomllib.loads(ISSUER.replace(good, bad, 1))
    with pytest.raises((ValueError, FieldInvalidError)) as caught:
        parse(document)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("good", "bad", "named"),
    [
        pytest.param("spiffe://", "https://", "certificates[0].uri", id="no SPIFFE id"),
        pytest.param("shop/*", "*/web", "certificates[0].uri", id="a star in the middle"),
        pytest.param("example.org/ns/shop/", "", "certificates[0].uri", id="anybody"),
        pytest.param('{ infer = ["fraud-*"] }', "{}", "certificates[0].permissions", id="nothing"),
    ],
)
def test_what_a_certificate_cannot_be_is_named(good: str, bad: str, named: str) -> None:
    document = tomllib.loads(CERTIFICATE.replace(good, bad, 1))
    with pytest.raises((ValueError, FieldInvalidError)) as caught:
        parse(document)
    assert named in str(caught.value)


def test_a_broken_file_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "identities.toml"
    for text in (b"[[issuers", b"\xff", b"[issuers]\n", ISSUER.encode() * 2):
        file.write_bytes(text)
        with pytest.raises(RuntimeError, match="file of identities"):
            read(file)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param({"a": 1}, '{["a"] = 1}', id="table"),
        pytest.param(["x", True], '{"x", true}', id="list"),
        pytest.param('"]] .. os\\\n', '"\\034]] .. os\\092\\010"', id="what would end a text"),
        pytest.param("ü", '"\\195\\188"', id="not ASCII"),
    ],
)
def test_values_stay_values_in_a_script(value: Any, text: str) -> None:
    assert lua(value) == text
