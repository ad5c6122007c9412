"""`servery keys`: create, list and revoke API keys."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from servery.cli.output import Format, Output, as_dict, out, print_json, print_table, short, when
from servery.cli.session import connect
from servery.gateway.v1 import gateway_pb2 as pb
from servery.keys import verb_name

app = typer.Typer(help="API keys: who may do what.", no_args_is_help=True)


@app.command()
def create(
    context: typer.Context,
    allow: Annotated[
        list[str],
        typer.Option(
            help="VERB or VERB:MODEL,MODEL; verbs are infer, read, train, publish, promote, admin;"
            " a model may end in *. Repeat for more verbs."
        ),
    ],
    name: Annotated[str, typer.Option(help="What people call it.")] = "",
    expires_in_days: Annotated[
        float | None, typer.Option(min=0, help="Days until it stops working; default: never.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Tenant id; default: your own.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Create a key and show its secret, once."""
    expire_time = None
    if expires_in_days is not None:
        expire_time = datetime.now(UTC) + timedelta(days=expires_in_days)
    with connect(context) as servery:
        created = servery.keys.create(
            _parse(allow),
            display_name=name,
            expire_time=expire_time,
            tenant=f"tenants/{tenant}" if tenant else None,
        )
    if output is Format.JSON:
        print_json(as_dict(created))
    else:
        out.print(f"{short(created.api_key.name)}  {_permissions(created.api_key)}")
        out.print(f"{created.secret}  (shown only now)", soft_wrap=True)


@app.command()
def token(
    context: typer.Context,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="As for create; no more than your key has. Default: all that it has."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="How long it is valid; default: 10 minutes.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Show a token of your key, to hand on: it may permit less, and ends soon."""
    valid_for = timedelta(minutes=minutes) if minutes is not None else None
    with connect(context) as servery:
        exchanged = servery.keys.token(_parse(allow or []), valid_for)
    if output is Format.JSON:
        print_json(as_dict(exchanged))
    else:
        out.print(exchanged.access_token, soft_wrap=True)


@app.command("list")
def list_(
    context: typer.Context,
    tenant: Annotated[str | None, typer.Option(help="Tenant id; default: your own.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """List keys, revoked and expired ones included."""
    with connect(context) as servery:
        keys = list(servery.keys.list(f"tenants/{tenant}" if tenant else None))
    if output is Format.JSON:
        print_json([as_dict(key) for key in keys])
    else:
        print_table(
            ["KEY", "NAME", "CREATED", "LAST USED", "STATE", "PERMISSIONS"],
            (
                (
                    *(short(k.name), k.display_name, when(k.create_time)),
                    when(k.last_use_time) if k.HasField("last_use_time") else "never",
                    *(_state(k), _permissions(k)),
                )
                for k in keys
            ),
        )


@app.command()
def revoke(
    context: typer.Context,
    key: Annotated[str, typer.Argument(help="Id or resource name of the key.")],
    output: Output = Format.TABLE,
) -> None:
    """Revoke a key for ever; calls with its live tokens are refused from now on."""
    with connect(context) as servery:
        revoked = servery.keys.revoke(key)
    if output is Format.JSON:
        print_json(as_dict(revoked))
    else:
        out.print(f"{short(revoked.name)} revoked")


def _parse(allow: list[str]) -> dict[str, list[str]]:
    permissions = {}
    for text in allow:
        verb, _, patterns = text.partition(":")
        permissions[verb] = patterns.split(",") if patterns else ["*"]
    return permissions


def _permissions(key: pb.ApiKey) -> str:
    return " ".join(f"{verb_name(p.verb)}:{','.join(p.models)}" for p in key.permissions)


def _state(key: pb.ApiKey) -> str:
    if key.HasField("revoke_time"):
        return "revoked"
    if not key.HasField("expire_time"):
        return "active"
    expired = key.expire_time.ToDatetime(UTC) <= datetime.now(UTC)
    return "expired" if expired else f"active until {when(key.expire_time)}"
