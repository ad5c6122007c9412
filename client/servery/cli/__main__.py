"""The `servery` command: parse, wire, run."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from servery.cli import (
    budgets,
    datasets,
    identities,
    jobs,
    keys,
    models,
    output,
    predict,
    prices,
    quotas,
    routes,
    tenants,
    train,
    tune,
    up,
    usage,
)
from servery.cli.session import Session
from servery.errors import ApiError
from servery.tenants import tenant_name

app = typer.Typer(
    help="Train, prove, publish and serve models.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.command("up")(up.up)
app.command("train")(train.train)
app.command("predict")(predict.predict)
app.add_typer(jobs.app, name="jobs")
app.add_typer(tune.app, name="tune")
app.add_typer(datasets.app, name="datasets")
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
app.add_typer(identities.app, name="identities")
app.add_typer(tenants.app, name="tenants")
app.add_typer(quotas.app, name="quotas")
app.add_typer(routes.app, name="routes")
app.command("usage")(usage.usage)
app.add_typer(prices.app, name="prices")
app.add_typer(budgets.app, name="budgets")


@app.callback()
def root(
    context: typer.Context,
    address: Annotated[
        str, typer.Option(envvar="SERVERY_ADDRESS", help="host:port of the gateway.")
    ] = "127.0.0.1:8080",
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="SERVERY_API_KEY", help="The secret of a key, sk-….", show_default=False
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="SERVERY_TOKEN",
            help="Instead of a key: a token of Servery or of the company's issuer.",
            show_default=False,
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            envvar="SERVERY_CERTIFICATE",
            exists=True,
            help="Instead of both: PEM file of a client certificate. With --key and --ca.",
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(envvar="SERVERY_KEY", exists=True, help="PEM file with its key."),
    ] = None,
    tenant: Annotated[
        str | None,
        typer.Option(
            envvar="SERVERY_TENANT",
            help="Your tenant's id, where neither a key nor a token of Servery says it.",
        ),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            envvar="SERVERY_CA",
            exists=True,
            help="PEM file to check the server's certificate against; turns TLS on.",
        ),
    ] = None,
) -> None:
    """Hold what every command needs."""
    context.obj = Session(
        address=address,
        api_key=api_key,
        token=token,
        certificate=certificate,
        key=key,
        tenant=tenant_name(tenant) if tenant else None,
        ca=ca,
    )


def main() -> int:
    """Run the command line; return its exit status.

    0 done, 2 usage or bad input, 3 not found, 4 denied, 5 conflict, 6 quota, 7 unavailable,
    130 interrupted, 1 anything else.
    """
    try:
        app()
    except ApiError as error:
        return output.fail(error)
    except (OSError, ValueError) as error:
        output.err.print("[red]error[/red] ", end="")
        output.err.print(str(error), markup=False)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
