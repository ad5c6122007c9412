"""A gateway that would be open, or could not work, does not start."""

from collections.abc import Sequence

import pytest

from servery_gateway.settings import GatewaySettings
from servery_rpc.settings import load

GOOD = {
    "--listen": "unix:/run/gateway.sock",
    "--data-dir": "data",
    "--public-listen": "127.0.0.1:8080",
    "--registry": "unix:/run/registry.sock",
    "--trainer": "trainer.local:9000",
    "--inference": "[::1]:9000",
}


def read(more: dict[str, str], without: Sequence[str] = ()) -> GatewaySettings:
    flags = {**GOOD, **more}
    argv = [part for flag in flags.items() if flag[0] not in without for part in flag]
    return load(GatewaySettings, "SERVERY_GATEWAY", argv, {})


def test_addresses_are_parsed() -> None:
    settings = read({})
    assert str(settings.public_address) == "127.0.0.1:8080"
    assert [str(settings.upstream(name)) for name in ("registry", "trainer", "inference")] == [
        "unix:/run/registry.sock",
        "trainer.local:9000",
        "[::1]:9000",
    ]


@pytest.mark.parametrize("flag", GOOD)
def test_what_is_required_must_be_given(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read({}, without=[flag])
    assert flag in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flag", "value", "named"),
    [
        pytest.param("--listen", "127.0.0.1:9000", "listen", id="control plane on TCP"),
        pytest.param("--public-listen", "0.0.0.0:8080", "public_tls_certificate", id="open"),
        pytest.param("--public-listen", "127.0.0.1:0", "public_listen", id="any port"),
        pytest.param("--public-listen", "unix:/x", "public_listen", id="a public socket"),
        pytest.param("--public-listen", "example.com:80", "public_listen", id="a public name"),
        pytest.param("--registry", "registry", "registry", id="no port"),
        pytest.param("--inference", "host:70000", "inference", id="no such port"),
        pytest.param("--trainer", f"unix:/{'x' * 100}", "trainer", id="a long path"),
        pytest.param("--inference-http-pools", "a=h:1", "no pool", id="no such pool"),
        pytest.param("--public-tls-key", "k", "public_tls_certificate", id="half TLS"),
        pytest.param("--public-client-ca", "ca", "public_tls_certificate", id="mTLS without TLS"),
        pytest.param("--database", "mysql://host/x", "postgresql://", id="another database"),
        pytest.param("--database", "gateway", "postgresql://", id="no URL"),
    ],
)
def test_a_bad_value_is_named_and_stops_the_start(
    flag: str, value: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        read({flag: value})
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_a_password_is_neither_taken_from_the_command_line_nor_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        read({"--database": "postgresql://servery:hunter2@host/gateway"})
    said = capsys.readouterr().err
    assert "PGPASSFILE" in said.splitlines()[-1]
    assert "hunter2" not in said


def test_tls_is_for_clients_and_not_for_the_socket(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read({"--tls-certificate": "c", "--tls-key": "k"})
    assert "public_tls_certificate" in capsys.readouterr().err.splitlines()[-1]
