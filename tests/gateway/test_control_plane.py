"""A control plane whose files are not what they must be does not start, in one clear line."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import URL, create_engine, text

from servery.errors import ApiError
from servery.gateway.v1 import gateway_pb2 as pb
from servery.gateway.v1 import gateway_pb2_grpc as pb_grpc
from servery.gateway.v1 import quota_pb2, quota_pb2_grpc, usage_pb2, usage_pb2_grpc
from servery_gateway.control_plane import control_plane
from tests.gateway.test_usage import counted
from tests.postgresql import database

if TYPE_CHECKING:
    from tests.gateway.conftest import Builder

READY = "/inference.GRPCInferenceService/ServerReady"
PRIVATE = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"


def start(directory: Path, *more: str) -> subprocess.CompletedProcess[str]:
    flags = {
        "--listen": f"unix:{directory}/gateway.sock",
        "--data-dir": str(directory / "data"),
        "--public-listen": "127.0.0.1:1",
        **{f"--{name}": f"unix:{directory}/x" for name in ("registry", "trainer", "inference")},
    }
    argv = [sys.executable, "-m", "servery_gateway", *(p for f in flags.items() for p in f), *more]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


def damaged_signing_key(directory: Path) -> list[str]:
    (directory / "data").mkdir()
    (directory / "data" / "signing-key.pem").write_text(PRIVATE)
    return []


def no_certificate(directory: Path) -> list[str]:
    paths = [str(directory / name) for name in ("tls.crt", "tls.key")]
    for path in paths:
        Path(path).write_text(PRIVATE)
    return ["--public-tls-certificate", paths[0], "--public-tls-key", paths[1]]


def no_database(directory: Path) -> list[str]:
    return ["--database", f"postgresql://servery@/gateway?host={directory}"]


def no_identities(directory: Path) -> list[str]:
    (directory / "identities.toml").write_text('[[issuers]]\nname = "company"\n')
    return ["--identities", str(directory / "identities.toml")]


@pytest.mark.parametrize(
    ("prepare", "named"),
    [
        pytest.param(damaged_signing_key, "signing-key-", id="a damaged signing key"),
        pytest.param(no_certificate, "public_tls_certificate", id="no certificate"),
        pytest.param(no_database, "database", id="no database"),
        pytest.param(no_identities, "issuers[0].issuer", id="half an issuer"),
    ],
)
def test_the_start_stops_with_one_line_that_names_the_file(
    own_directory: Path, prepare: object, named: str
) -> None:
    assert callable(prepare)
    ended = start(own_directory, *prepare(own_directory))
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert '"critical"' in last
    assert named in last
    assert "Traceback" not in ended.stderr


@pytest.mark.asyncio(loop_scope="session")
async def test_on_postgresql_everything_is_there_after_a_restart(
    postgresql_server: URL, build: Builder, own_directory: Path
) -> None:
    with database(postgresql_server) as url:
        settings = build.settings_for(
            own_directory,
            database=url.set(drivername="postgresql").render_as_string(hide_password=False),
        )
        for start in range(2):
            async with (
                control_plane(settings),
                grpc.aio.insecure_channel(settings.listen) as channel,
            ):
                tenants = pb_grpc.TenantServiceStub(channel)
                if start == 0:
                    request = pb.CreateTenantRequest(tenant=pb.Tenant(name="tenants/kept"))
                    await tenants.CreateTenant(request)
                    continue
                listed = await tenants.ListTenants(pb.ListTenantsRequest())
                assert [t.name for t in listed.tenants] == ["tenants/default", "tenants/kept"]
                query = usage_pb2.UsageQuery(
                    parent="tenants/-",
                    start_time=Timestamp(seconds=0),
                    end_time=Timestamp(seconds=3600),
                    interval=Duration(seconds=60),
                    group_by=[usage_pb2.USAGE_DIMENSION_TENANT],
                )
                found = await usage_pb2_grpc.UsageServiceStub(channel).QueryUsage(
                    usage_pb2.QueryUsageRequest(query=query)
                )
                assert not found.rows
        assert not list(settings.data_dir.glob("gateway.db*"))


@pytest.mark.asyncio(loop_scope="session")
async def test_while_postgresql_is_away_calls_go_on_and_are_counted_when_it_is_back(
    postgresql_server: URL, build: Builder, own_directory: Path
) -> None:
    with database(postgresql_server) as url:
        address = url.set(drivername="postgresql").render_as_string(hide_password=False)
        settings = build.settings_for(own_directory, database=address)
        async with control_plane(settings), build.running_stack(settings, own_directory) as own:
            token = await own.token("steady", infer=["*"])
            await asyncio.to_thread(close_door, postgresql_server, url)
            for _ in range(20):
                await own.call(READY, token)
            tenants = pb_grpc.TenantServiceStub(own.platform)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await tenants.ListTenants(pb.ListTenantsRequest())
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert ApiError.of(caught.value).reason == "ERROR_REASON_DEPENDENCY_UNAVAILABLE"
            await asyncio.to_thread(open_door, postgresql_server, url)
            await build.until(counted(own, "steady", 20))
            quota = quota_pb2.Quota(name="tenants/steady", requests_per_day=1)
            await quota_pb2_grpc.QuotaServiceStub(own.platform).SetQuota(
                quota_pb2.SetQuotaRequest(quota=quota)
            )

            async def spent() -> bool:
                try:
                    await own.call(READY, token)
                except grpc.aio.AioRpcError as error:
                    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                return False

            await build.until(spent)


def close_door(server: URL, url: URL) -> None:
    """Let nobody into a database, and send away who is there."""
    run(server, f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS false")
    run(
        server,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename IS NOT NULL"
        " AND datname LIKE 'test%'",
    )


def open_door(server: URL, url: URL) -> None:
    run(server, f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS true")


def run(server: URL, statement: str) -> None:
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()
