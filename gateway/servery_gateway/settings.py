"""What `servery-gateway` can be told."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from servery_gateway.address import Address, HostAddress, UnixAddress, parse_address
from servery_gateway.model_routes import DEFAULT_POOL
from servery_gateway.quota import MAX_PER_SECOND
from servery_rpc.database import DatabaseSettings
from servery_rpc.settings import is_private, option

_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?")
_POOL: Final = re.compile(r"[a-z][a-z0-9-]{0,30}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings(DatabaseSettings):
    """The control plane of Servery's gateway: tenants, keys, and the configuration of Envoy."""

    listen: str = option(
        "unix:PATH of the control plane. Who may open this socket may do anything, so it is made"
        " for this user alone"
    )
    data_dir: Path = option("directory of the database and the secrets; made if it is missing")
    public_listen: str = option(
        "ip:port that Envoy serves clients on. Beyond loopback only with TLS"
    )
    registry: str = option("unix:PATH or host:port of the registry")
    trainer: str = option("unix:PATH or host:port of the trainer")
    inference: str = option("unix:PATH or host:port of the inference server")
    inference_pools: tuple[str, ...] = option(
        "more inference servers for routes to choose, each as pool=unix:PATH or pool=host:port; a"
        " pool that comes twice has two servers",
        (),
    )
    inference_http: str | None = option(
        "unix:PATH or host:port of the HTTP door of the inference server; unset: no REST", None
    )
    inference_http_pools: tuple[str, ...] = option(
        "HTTP doors of the servers of inference_pools, written like those; with inference_http,"
        " every pool needs one",
        (),
    )
    browser_origins: tuple[str, ...] = option(
        "from where pages in browsers may call, such as https://app.example.org; none: nowhere", ()
    )
    key_exchanges_per_minute: int = option(
        "how many keys one address may exchange for tokens, by each Envoy", 600
    )
    tenant_requests_per_second: int = option(
        "calls a second of a tenant without a quota of its own, by each Envoy; 0: no limit", 0
    )
    signing_key_days: int = option("days until tokens are signed with a new key", 30)
    public_tls_certificate: Path | None = option(
        "PEM file with the certificate chain that Envoy shows clients; read again when it changes",
        None,
    )
    public_tls_key: Path | None = option("PEM file with the key of that certificate", None)

    public_client_ca: Path | None = option(
        "PEM file that the certificates of clients are checked against, read again when it changes;"
        " unset: none are asked for",
        None,
    )
    identities: Path | None = option(
        "TOML file that gives tenants and permissions to who an OIDC issuer or a client certificate"
        " vouches for, read again when it changes; see docs/guides/access.md",
        None,
    )

    def __post_init__(self) -> None:
        """See `DatabaseSettings.__post_init__`."""
        DatabaseSettings.__post_init__(self)
        if not isinstance(parse_address(self.listen, "listen"), UnixAddress):
            raise ValueError(
                f"listen must be unix:PATH, not {self.listen!r}: whoever reaches it may do anything"
            )
        if self.tls_certificate is not None:
            raise ValueError(
                "tls_certificate is not for the control plane's own socket; the certificate for"
                " clients is public_tls_certificate"
            )
        if self.signing_key_days < 1:
            raise ValueError(f"signing_key_days must be at least 1, not {self.signing_key_days}")
        for name, least in (("key_exchanges_per_minute", 1), ("tenant_requests_per_second", 0)):
            if not least <= getattr(self, name) <= MAX_PER_SECOND:
                raise ValueError(
                    f"{name} must be {least} to {MAX_PER_SECOND}, not {getattr(self, name)}"
                )
        for name in ("registry", "trainer", "inference"):
            self.upstream(name)
        if self.inference_http is not None:
            self.upstream("inference_http")
        doors = set(self.pools) if self.inference_http else set()
        if set(self.http_pools) != doors:
            raise ValueError(
                f"inference_http_pools must name {', '.join(sorted(doors)) or 'no pool'}, not"
                f" {', '.join(self.http_pools) or 'none'}: with inference_http, the models of every"
                " pool are called over REST, too"
            )
        for origin in self.browser_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"browser_origins has {origin!r}, which is not like https://app.example.org"
                )
        if (self.public_tls_certificate is None) != (self.public_tls_key is None):
            raise ValueError("public_tls_certificate and public_tls_key must be given together")
        if self.public_client_ca is not None and self.public_tls_certificate is None:
            raise ValueError("public_client_ca needs public_tls_certificate and public_tls_key")
        public = self.public_address
        if self.public_tls_certificate is None and not is_private(str(public)):
            raise ValueError(
                f"public_listen is {self.public_listen!r}, which others can reach: give"
                " public_tls_certificate and public_tls_key, or listen on 127.0.0.1"
            )

    @property
    def public_address(self) -> HostAddress:
        """`public_listen`, parsed."""
        address = parse_address(self.public_listen, "public_listen")
        if not isinstance(address, HostAddress) or not address.is_ip:
            raise ValueError(f"public_listen must be ip:port, not {self.public_listen!r}")
        return address

    def upstream(self, name: str) -> Address:
        """The address of the upstream `name`, parsed."""
        text: str = getattr(self, name)
        return parse_address(text, name)

    @property
    def pools(self) -> Mapping[str, tuple[Address, ...]]:
        """`inference_pools`, parsed: name to servers."""
        return _parse_pools(self.inference_pools, "inference_pools")

    @property
    def http_pools(self) -> Mapping[str, tuple[Address, ...]]:
        """`inference_http_pools`, parsed: name to HTTP doors."""
        return _parse_pools(self.inference_http_pools, "inference_http_pools")


def _parse_pools(texts: Sequence[str], setting: str) -> Mapping[str, tuple[Address, ...]]:
    found: dict[str, tuple[Address, ...]] = {}
    for text in texts:
        name, equals, address = text.partition("=")
        if not equals or not _POOL.fullmatch(name) or name == DEFAULT_POOL:
            raise ValueError(
                f"{setting} has {text!r}, which is not like gpu=host:port with a name of small"
                f" letters, digits and `-` other than {DEFAULT_POOL!r}"
            )
        found[name] = (*found.get(name, ()), parse_address(address, setting))
    for name, addresses in found.items():
        named = [isinstance(a, HostAddress) and not a.is_ip for a in addresses]
        if any(named) and not all(isinstance(a, HostAddress) for a in addresses):
            raise ValueError(
                f"{setting}: {name!r} mixes host names with unix sockets; use one kind"
            )
    return found
