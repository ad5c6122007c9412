"""The commands of operators, as a user types them, through the real Envoy."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from servery.inference.v1 import grpc_service_pb2 as oip

if TYPE_CHECKING:
    from tests.gateway.conftest import Builder, Stack

pytestmark = pytest.mark.asyncio(loop_scope="session")

INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True)
class Shell:
    """Runs `servery` with the key of an administrator."""

    address: str
    key: str

    async def run(self, *arguments: str) -> tuple[int | None, str, str]:
        """Return exit status, standard output and standard error."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "servery.cli", *arguments),
            env={"SERVERY_ADDRESS": self.address, "SERVERY_API_KEY": self.key},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    async def json(self, *arguments: str) -> Any:
        """Return what a command that succeeds prints as JSON."""
        status, out, err = await self.run(*arguments, "-o", "json")
        assert status == 0, err
        return json.loads(out)


@pytest_asyncio.fixture(loop_scope="session")
async def shell(stack: Stack) -> Shell:
    key = await stack.new_key(admin=["*"])
    return Shell(stack.settings.public_listen, key.secret)


async def test_tenants_are_created_and_listed(shell: Shell) -> None:
    created = await shell.json("tenants", "create", "shelled", "--name", "Shelled & Co")
    assert created["name"] == "tenants/shelled"
    assert created in await shell.json("tenants", "list")
    status, _, err = await shell.run("tenants", "create", "shelled")
    assert status == 5
    assert "TENANT_EXISTS" in err
    _, table, _ = await shell.run("tenants", "list")
    assert "Shelled & Co" in table


async def test_quotas_are_set_and_shown(shell: Shell) -> None:
    await shell.run("tenants", "create", "limited")
    command = ("quotas", "set", "limited", "--per-second", "7", "--per-day", "1000")
    quota = (await shell.json(*command))["quota"]
    assert quota == {
        "name": "tenants/limited",
        "requests_per_second": 7,
        "requests_per_day": "1000",
    }
    assert (await shell.json("quotas", "show", "limited"))["quota"] == quota
    _, table, _ = await shell.run("quotas", "show", "limited")
    assert table.splitlines()[1].split() == ["tenants/limited", "7", "-", "1000", "0"]
    status, _, err = await shell.run("quotas", "show", "nobody-at-all")
    assert status == 3
    assert "TENANT_NOT_FOUND" in err


async def test_usage_is_shown_in_every_form(shell: Shell, stack: Stack, build: Builder) -> None:
    token = await stack.token("spender", infer=["*"])
    request = oip.ModelInferRequest(model_name="spender.iris", raw_input_contents=[bytes(100)])
    for _ in range(3):
        await stack.call(INFER, token, request)
    command = ("usage", "--by", "model", "--by", "code", "--tenant", "spender")

    async def counted() -> bool:
        return [row.get("requests") for row in await shell.json(*command)] == ["3"]

    await build.until(counted)
    (row,) = await shell.json(*command)
    assert row["model"] == "tenants/spender/models/iris"
    _, table, _ = await shell.run(*command)
    assert table.splitlines()[1].split()[2:5] == ["tenants/spender/models/iris", "0", "3"]
    _, text, _ = await shell.run(*command, "-o", "csv")
    (line,) = csv.DictReader(io.StringIO(text, newline=""))
    assert line["model"] == "tenants/spender/models/iris"
    assert line["requests"] == "3"
    everybody = await shell.json("usage", "--by", "tenant", "--tenant", "-")
    assert "tenants/spender" in {row.get("tenant") for row in everybody}


async def test_prices_and_budgets_are_set_and_shown(shell: Shell) -> None:
    await shell.run("tenants", "create", "customer")
    prices = await shell.json("prices", "set", "customer", "--thousand-requests", "0.05")
    assert prices == {"name": "tenants/customer", "thousand_requests_nanos": "50000000"}
    _, table, _ = await shell.run("prices", "show", "customer")
    assert table.splitlines()[1].split() == ["tenants/customer", "0.05", "0", "0", "0"]
    await shell.run("budgets", "set", "customer", "--amount", "100", "--alert", "80")
    found = await shell.json("budgets", "show", "customer")
    assert found["budget"] == {
        "name": "tenants/customer",
        "amount_nanos": "100000000000",
        "alert_percents": [80],
    }
    _, table, _ = await shell.run("budgets", "show", "customer")
    assert table.splitlines()[1].split() == ["tenants/customer", "100", "0", "80%", "no"]


async def test_a_token_is_handed_on_and_used(shell: Shell) -> None:
    handed = await shell.json("keys", "token", "--allow", "admin", "--minutes", "1")
    status, _, _ = await shell.run("--token", handed["access_token"], "tenants", "list")
    assert status == 0
    status, _, err = await shell.run("keys", "token", "--allow", "infer:digits")
    assert status == 4
    assert "PERMISSION_DENIED" in err


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("usage", "--by", "colour"), id="no dimension"),
        pytest.param(("usage", "--start", "yesterday"), id="no time"),
        pytest.param(("quotas", "set", "default", "--per-second", "-1"), id="negative"),
        pytest.param(("prices", "set", "-", "--gigabyte", "cheap"), id="no money"),
        pytest.param(("--certificate", "/dev/null", "tenants", "list"), id="no key"),
        pytest.param(("keys", "token", "--minutes", "60"), id="too long"),
        pytest.param(("quotas", "set", "default", "--per-second", "2000000"), id="too large"),
    ],
)
async def test_bad_arguments_end_with_status_2(shell: Shell, arguments: tuple[str, ...]) -> None:
    status, _, err = await shell.run(*arguments)
    assert status == 2
    assert err


async def test_keys_show_when_they_were_last_used(
    shell: Shell, stack: Stack, build: Builder
) -> None:
    key = await stack.new_key("shown", infer=["*"])
    command = ("keys", "list", "--tenant", "shown")
    _, table, _ = await shell.run(*command)
    assert "never" in table
    await stack.call(
        "/inference.GRPCInferenceService/ServerReady", await stack.exchange(key.secret)
    )

    async def used() -> bool:
        return "last_use_time" in (await shell.json(*command))[0]

    await build.until(used)
    _, table, _ = await shell.run(*command)
    assert "never" not in table
