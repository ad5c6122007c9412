"""The configuration of Envoy, compared with reviewed files.

After a change that is meant, write them again and read the difference:

    SERVERY_REWRITE_GOLDEN=1 .venv/bin/pytest tests/gateway/test_translation.py
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from servery_gateway.address import HostAddress, UnixAddress
from servery_gateway.bootstrap import bootstrap
from servery_gateway.callers import Callers
from servery_gateway.certificate import Certificate
from servery_gateway.identities import CertificateIdentity, Identities, Issuer
from servery_gateway.keys import Permission
from servery_gateway.limits import Rates
from servery_gateway.methods import methods
from servery_gateway.model_routes import ModelRoute
from servery_gateway.snapshot import (
    CLUSTER,
    ENDPOINTS,
    EXTENSION,
    LISTENER,
    ROUTES,
    SECRET,
    Encoder,
    InconsistentSnapshotError,
    Snapshot,
)
from servery_gateway.translation import GatewayState, translate
from servery_rpc.names import ModelName

GOLDEN = Path(__file__).parents[1] / "golden"
JWK = {"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "k", "x": "x", "y": "y"}
TABLE = tuple(
    method
    for method in methods()
    if method.path
    in {
        "/grpc.health.v1.Health/Check",
        "/inference.GRPCInferenceService/ModelInfer",
        "/inference.GRPCInferenceService/ModelStreamInfer",
        "/inference.GRPCInferenceService/RepositoryModelLoad",
        "/servery.gateway.v1.AuthService/ExchangeApiKey",
        "/servery.registry.v1.RegistryService/GetModel",
        "/servery.trainer.v1.DatasetService/CreateDataset",
        "/servery.trainer.v1.TrainingService/WatchTrainingJob",
    }
)
"""One method of each kind, so that the files change only with the translation."""

LOCAL = GatewayState(
    public=HostAddress("127.0.0.1", 8080),
    certificate=None,
    upstreams={
        name: (UnixAddress(f"/run/servery/{name}.sock"),)
        for name in ("gateway", "inference", "registry", "trainer")
    },
    pools={},
    http_pools={},
    models=(),
    origins=(),
    jwks=(JWK,),
    refused={},
    rates=Rates(exchanges_per_minute=600, owners={}),
)
CLUSTERED = GatewayState(
    public=HostAddress("0.0.0.0", 443),  # noqa: S104 with TLS
    certificate=Certificate("CERTIFICATE", "KEY"),
    upstreams={
        **LOCAL.upstreams,
        "inference": (HostAddress("10.0.0.7", 9000),),
        "registry": (HostAddress("registry.servery.svc", 9000),),
        "inference-http": (HostAddress("10.0.0.7", 9001),),
    },
    pools={"gpu": (HostAddress("10.0.0.8", 9000), HostAddress("10.0.0.9", 9000))},
    http_pools={"gpu": (HostAddress("10.0.0.8", 9001), HostAddress("10.0.0.9", 9001))},
    models=(
        ModelRoute(
            model=ModelName("acme", "digits"),
            pools=(("default", 9), ("gpu", 1)),
            mirror_pool="gpu",
        ),
    ),
    origins=("https://app.example.org",),
    jwks=(JWK,),
    refused={
        "revoked": frozenset({"tenants/acme/apiKeys/2", "tenants/acme/apiKeys/1"}),
        "spent": frozenset({"tenants/dry", "tenants/acme/apiKeys/3"}),
        "budget": frozenset({"tenants/broke"}),
    },
    rates=Rates(
        exchanges_per_minute=60,
        tenant_per_second=100,
        owners={"tenants/acme": 500, "tenants/acme/apiKeys/1": 5},
    ),
    callers=Callers(
        in_flight={"tenants/acme": 8, "tenants/acme/apiKeys/1": 2},
        identities=Identities(
            issuers=(
                Issuer(
                    name="company",
                    url="https://login.example.org",
                    audiences=("servery",),
                    tenant=None,
                    tenant_claim=("org",),
                    tenants={"Example GmbH": "acme"},
                    roles_claim=("realm", "roles"),
                    roles={"scientists": (Permission("read", ("*",)),)},
                ),
            ),
            certificates=(
                CertificateIdentity(
                    uri="spiffe://example.org/ns/shop/*",
                    tenant="acme",
                    permissions=(Permission("infer", ("fraud-*",)),),
                ),
            ),
        ),
    ),
    issuer_jwks={
        "https://login.example.org": ({"kty": "RSA", "kid": "1", "n": "AQAB", "e": "AQAB"},)
    },
    client_ca="CA",
)


def readable(value: Any) -> Any:
    """Show bytes by their digest, scripts by their lines, and of the contracts only that they are.

    Those have checks of their own.
    """
    if isinstance(value, Mapping):
        return {
            key: hashlib.sha256(part.encode()).hexdigest()
            if key == "inline_bytes"
            else "..."
            if key == "proto_descriptor_bin"
            else part.splitlines()
            if key == "inline_string" and "\n" in part
            else readable(part)
            for key, part in value.items()
        }
    return [readable(part) for part in value] if isinstance(value, (list, tuple)) else value


def compare(name: str, got: Any) -> None:
    path = GOLDEN / name
    if os.environ.get("SERVERY_REWRITE_GOLDEN"):
        path.write_text(json.dumps(got, indent=1, ensure_ascii=False) + "\n")
    assert got == json.loads(path.read_text())


def test_a_local_gateway() -> None:
    compare("gateway_local.json", readable(translate(LOCAL, TABLE).resources))


def test_a_gateway_with_tls_and_servers_elsewhere() -> None:
    resources = translate(CLUSTERED, TABLE).resources
    kinds = (CLUSTER, ENDPOINTS, SECRET, EXTENSION, ROUTES)
    chain = resources[LISTENER]["public"]["filter_chains"][0]
    got = {kind: resources[kind] for kind in kinds} | {"tls": chain["transport_socket"]}
    compare("gateway_clustered.json", readable(got))


def test_the_bootstrap_of_envoy() -> None:
    got = bootstrap(UnixAddress("/run/gateway.sock"), UnixAddress("/run/envoy/admin.sock"))
    compare("envoy_bootstrap.json", got)


@pytest.mark.parametrize("state", [LOCAL, CLUSTERED], ids=["local", "clustered"])
def test_every_resource_is_a_message_of_envoys_api(state: GatewayState) -> None:
    encoded = Encoder().encode(translate(state, TABLE))
    assert all(value for named in encoded.values() for value in named.values())


def test_what_did_not_change_is_not_serialized_again() -> None:
    encoder = Encoder()
    before = encoder.encode(translate(replace(CLUSTERED, models=()), TABLE))
    after = encoder.encode(translate(CLUSTERED, TABLE))
    assert {kind for kind in before if before[kind] is not after[kind]} == {ROUTES}


def test_the_order_of_what_goes_in_does_not_matter() -> None:
    turned = replace(LOCAL, upstreams=dict(reversed(list(LOCAL.upstreams.items()))))
    assert translate(turned, TABLE).versions == translate(LOCAL, TABLE).versions


def test_a_revocation_changes_the_deny_list_and_nothing_else() -> None:
    before = translate(LOCAL, TABLE).versions
    revoked = replace(LOCAL, refused={"revoked": frozenset({"tenants/a/apiKeys/1"})})
    after = translate(revoked, TABLE).versions
    assert {kind for kind in before if before[kind] != after[kind]} == {EXTENSION}


@pytest.mark.parametrize("kind", [CLUSTER, ENDPOINTS, SECRET, EXTENSION, ROUTES])
def test_a_snapshot_without_what_it_refers_to_cannot_be_made(kind: str) -> None:
    resources = translate(CLUSTERED, TABLE).resources
    with pytest.raises(InconsistentSnapshotError):
        Snapshot({**resources, kind: {}})
