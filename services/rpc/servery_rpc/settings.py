"""Settings: frozen dataclasses, read once in `main` from flags and the environment.

A field `drain_s` of a process with prefix `SERVERY_REGISTRY` is the flag `--drain-s` and the
variable `SERVERY_REGISTRY_DRAIN_S`; the flag wins. A bad value stops the process before it begins,
with one line that names it.
"""

import argparse
import dataclasses
import ipaddress
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

_COLLECTOR: Final = re.compile(r"https?://[^\s/@]+:[0-9]{1,5}/?")

S = TypeVar("S")


def option(
    help: str,  # noqa: A002 as argparse calls it
    default: Any = dataclasses.MISSING,
    *,
    standard: str = "",
    **kwargs: Any,
) -> Any:
    """Declare a settings field.

    Args:
        help: The text that `--help` shows for it.
        default: What holds if nothing is said.
        standard: A variable of the environment that other programs read for the same purpose; the
            flag and the variable of the process go before it.
        kwargs: As `dataclasses.field` takes them.
    """
    metadata = {"help": help, "standard": standard}
    return dataclasses.field(default=default, metadata=metadata, **kwargs)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What every gRPC server of Servery can be told."""

    listen: str = option(
        "host:port or unix:/path to serve gRPC on; port 0 picks a free one. Beyond loopback only"
        " with TLS",
        "127.0.0.1:0",
    )
    tls_certificate: Path | None = option("PEM file with the server's certificate chain", None)
    tls_key: Path | None = option("PEM file with the key of that certificate", None)
    metrics_port: int | None = option(
        "loopback port for Prometheus metrics at /metrics; 0 picks a free one; unset: none", None
    )
    drain_s: float = option("seconds that running calls get to finish after SIGTERM", 10.0)
    max_message_bytes: int = option("largest message accepted or sent; -1: no limit", -1)
    log_level: str = option("debug, info, warning or error", "info")
    otlp_endpoint: str | None = option(
        "http:// or https:// and host:port of an OpenTelemetry collector that gets traces over"
        " gRPC; unset: no traces. OTEL_EXPORTER_OTLP_ENDPOINT is read too",
        None,
        standard="OTEL_EXPORTER_OTLP_ENDPOINT",
    )
    trace_ratio: float = option(
        "share of calls, 0 to 1, that are traced where the caller has not decided", 1.0
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ValueError: A field is out of its range; the message names it.
        """
        if self.drain_s < 0:
            raise ValueError(f"drain_s must be at least 0, not {self.drain_s}")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ValueError(
                f"log_level must be debug, info, warning or error, not {self.log_level!r}"
            )
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key must be given together")
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65535:
            raise ValueError(f"metrics_port must be 0 to 65535, not {self.metrics_port}")
        if self.otlp_endpoint is not None and not _COLLECTOR.fullmatch(self.otlp_endpoint):
            raise ValueError(
                "otlp_endpoint must be http:// or https:// and host:port, such as"
                f" http://127.0.0.1:4317, not {self.otlp_endpoint!r}"
            )
        if not 0 <= self.trace_ratio <= 1:
            raise ValueError(f"trace_ratio must be 0 to 1, not {self.trace_ratio}")
        if self.tls_certificate is None and not is_private(self.listen):
            raise ValueError(
                f"listen is {self.listen!r}, which others can reach: give tls_certificate and"
                " tls_key, or listen on 127.0.0.1 or a unix socket"
            )


def is_private(address: str) -> bool:
    """Tell whether only this machine can reach `address`.

    Raises:
        ValueError: `address` is neither `host:port` nor `unix:/path`.
    """
    if address.startswith("unix:"):
        if len(address.removeprefix("unix:")) > 100:  # the kernel's limit is 108 with its NUL
            raise ValueError(
                f"listen is {address!r}: a unix socket path has at most 100 characters"
            )
        return True
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"listen must be host:port or unix:/path, not {address!r}")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def load(cls: type[S], prefix: str, argv: Sequence[str] | None, env: Mapping[str, str]) -> S:
    """Read the settings of a process; `--help` and bad values end the process.

    Args:
        cls: A frozen dataclass whose fields were declared with `option`.
        prefix: Of the environment variables, such as `SERVERY_REGISTRY`; also names the program.
        argv: The arguments, without the program; None means those of this process.
        env: The environment.
    """
    parser = argparse.ArgumentParser(
        prog=prefix.lower().replace("_", "-"),
        description=(cls.__doc__ or "").strip(),
        epilog=f"Each option is also read from the environment, as {prefix}_OPTION.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    for field in fields:
        required = field.default is dataclasses.MISSING
        several = _is_tuple(hints[field.name])
        variable = f"{prefix}_{field.name.upper()}"
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            help=field.metadata["help"] + (" (required)" if required else ""),
            default=argparse.SUPPRESS if required or several else field.default,
            metavar=_kind(hints[field.name]).__name__.upper(),
            action="extend" if several else "store",
            nargs="+" if several else None,
            required=required and variable not in env,
        )
    given = vars(parser.parse_args(argv))
    values: dict[str, Any] = {}
    for field in fields:
        variable = f"{prefix}_{field.name.upper()}"
        flag = f"--{field.name.replace('_', '-')}"
        standard = field.metadata["standard"]
        if field.name in given and given[field.name] is not field.default:
            source, text = flag, given[field.name]
        elif variable in env:
            source, text = variable, env[variable]
        elif env.get(standard):  # By its own rules an empty one counts as unset.
            source, text = standard, env[standard]
        else:
            continue
        try:
            values[field.name] = _parse(hints[field.name], text)
        except ValueError:
            parser.error(f"{source} is {text!r}; it must be a {_kind(hints[field.name]).__name__}")
    try:
        return cls(**values)
    except ValueError as error:
        parser.error(str(error))


def arguments(settings: ServerSettings) -> list[str]:
    """Return the arguments from which `load` makes the same settings, for a process of the same."""
    flags = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value == field.default:
            continue
        for each in value if isinstance(value, tuple) else (value,):
            text = str(each).lower() if isinstance(each, bool) else str(each)
            flags.append(f"--{field.name.replace('_', '-')}={text}")
    return flags


def _is_tuple(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple


def _kind(hint: Any) -> Any:
    """The scalar type behind `X | None` and `tuple[X, ...]`."""
    arguments = [a for a in typing.get_args(hint) if a not in (type(None), ...)]
    return arguments[0] if arguments else hint


def _parse(hint: Any, text: str | list[str]) -> Any:
    kind = _kind(hint)
    if _is_tuple(hint):
        parts = text.split(",") if isinstance(text, str) else text
        return tuple(kind(part) for part in parts)
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(text)
        return text == "true"
    return kind(text)
