"""`servery up`: the whole platform on this machine, in the foreground."""

import asyncio
import fcntl
import os
import signal
import socket
from pathlib import Path
from typing import Annotated, Final

import grpc
import typer
from rich.console import Console

from servery.cli.platform import Platform, missing_packages
from servery.cli.supervisor import SettingsRefusedError, Supervisor
from servery.gateway.v1 import gateway_pb2 as pb
from servery.gateway.v1 import gateway_pb2_grpc as pb_grpc

_READY_S: Final = 90.0
_DRAIN_S: Final = 15.0
_DEFAULT_TENANT: Final = "tenants/default"

out = Console(highlight=False, soft_wrap=True)


def up(
    data_dir: Annotated[
        Path, typer.Option(help="All state: models, data, jobs, keys. Survives restarts.")
    ] = Path("servery-data"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where clients connect.")] = 8080,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond loopback only with TLS.")
    ] = "127.0.0.1",
    tls_certificate: Annotated[
        Path | None, typer.Option(exists=True, help="PEM certificate chain of the server.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(exists=True, help="PEM key of it.")] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(help="Write the first key there, for this user alone, instead of showing it."),
    ] = None,
) -> None:
    """Run the whole platform on this machine until Ctrl-C.

    Starts registry, inference, trainer, gateway and Envoy, restarts what dies, and prints one
    administrator's key when there is no key yet.
    """
    if missing := missing_packages():
        raise typer.BadParameter(f"not installed: pip install 'servery[{','.join(missing)}]'")
    if (tls_certificate is None) != (tls_key is None):
        raise typer.BadParameter("--tls-certificate and --tls-key go together")
    try:
        platform = Platform(
            data_dir=data_dir.absolute(),
            address=f"{host}:{port}",
            tls_certificate=tls_certificate and tls_certificate.absolute(),
            tls_key=tls_key and tls_key.absolute(),
        )
        for directory in (platform.data_dir, platform.data_dir / "run", platform.log_dir):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with socket.create_server((host, port)):
            pass  # Free: said here, at once, and not by Envoy's log.
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    with (platform.data_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise typer.BadParameter(f"{data_dir} is in use by another `servery up`") from None
        raise typer.Exit(asyncio.run(_run(platform, key_file)))


async def _run(platform: Platform, key_file: Path | None) -> int:
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    supervisor = Supervisor(
        platform.programs(), platform.log_dir, lambda line: out.print(f"servery: {line}")
    )
    out.print(f"servery: starting; data and logs in {platform.data_dir}")
    supervisor.start()
    stopping = asyncio.create_task(stop.wait())
    starting = asyncio.create_task(supervisor.wait_ready(_READY_S))
    try:
        await asyncio.wait([stopping, starting], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            return 130
        await starting
        await _welcome(platform, key_file)
        await stopping
        out.print("servery: stopping; running calls finish first")
    except (SettingsRefusedError, TimeoutError) as error:
        out.print(f"servery: {error}", markup=False)
        return 1
    finally:
        starting.cancel()
        await supervisor.stop(_DRAIN_S)
    out.print("servery: stopped")
    return 0


async def _welcome(platform: Platform, key_file: Path | None) -> None:
    out.print(f"  gRPC      {platform.address}{' (TLS)' if platform.tls_key else ''}")
    secret = await _first_key(platform)
    if secret is None:
        out.print("  key       as created before (`servery keys list`)")
    elif key_file is not None:
        with os.fdopen(
            os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w"
        ) as file:
            file.write(secret)
        out.print(f"  key       in {key_file}")
    else:
        out.print(f"  key       {secret}  (an administrator's; shown only now)")
        ca = " SERVERY_CA=CA.pem" if platform.tls_key else ""
        out.print(
            f"  try       export SERVERY_ADDRESS={platform.address} SERVERY_API_KEY={secret}{ca}"
        )
        if ca:
            out.print("            CA.pem: the certificate of who signed the one of this server")
    out.print("servery: ready")


async def _first_key(platform: Platform) -> str | None:
    """Create a key that may do everything, if the default tenant has none that works."""
    async with grpc.aio.insecure_channel(platform.socket("gateway")) as channel:
        keys = pb_grpc.ApiKeyServiceStub(channel)
        stored = await keys.ListApiKeys(pb.ListApiKeysRequest(parent=_DEFAULT_TENANT))
        if any(not key.HasField("revoke_time") for key in stored.api_keys):
            return None
        everything = [pb.Permission(verb=verb, models=["*"]) for verb in pb.Verb.values() if verb]
        key = pb.ApiKey(display_name="first key", permissions=everything)
        request = pb.CreateApiKeyRequest(parent=_DEFAULT_TENANT, api_key=key)
        return (await keys.CreateApiKey(request)).secret
