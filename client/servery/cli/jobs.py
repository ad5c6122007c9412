"""`servery jobs`: list, follow, cancel, resume and reproduce training jobs; read their logs."""

import sys
from typing import Annotated, Final

import typer

from servery.cli.job_view import end_of_job, follow_job, print_failure, score, state_name
from servery.cli.output import (
    Format,
    Output,
    as_dict,
    err,
    out,
    print_json,
    print_table,
    short,
    when,
)
from servery.cli.session import connect
from servery.client import Client
from servery.jobs import same_weights

app = typer.Typer(help="Training jobs.", no_args_is_help=True)

Job = Annotated[str, typer.Argument(help="Id or resource name of the job.")]


@app.command("list")
def list_(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List jobs, the newest first."""
    with connect(context) as servery:
        jobs = list(servery.jobs.list())
    if output is Format.JSON:
        print_json([as_dict(job) for job in jobs])
    else:
        print_table(
            ["JOB", "STATE", "MODEL", "VERSION", "SCORE", "CREATED"],
            (
                (
                    short(job.name),
                    state_name(job),
                    short(job.spec.publication.model),
                    short(job.result.version),
                    score(job.result) if job.HasField("result") else "",
                    when(job.create_time),
                )
                for job in jobs
            ),
        )


@app.command()
def watch(context: typer.Context, job: Job, output: Output = Format.TABLE) -> None:
    """Follow a job until it has ended; the exit status says how."""
    with connect(context) as servery:
        raise typer.Exit(follow_job(servery, _resource_name(servery, job), output))


@app.command()
def cancel(context: typer.Context, job: Job, output: Output = Format.TABLE) -> None:
    """Ask a job to stop; it publishes nothing."""
    with connect(context) as servery:
        cancelled = servery.jobs.cancel(_resource_name(servery, job))
    if output is Format.JSON:
        print_json(as_dict(cancelled))
    else:
        out.print(f"{short(cancelled.name)}: {state_name(cancelled)}")


@app.command()
def logs(
    context: typer.Context,
    job: Job,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")
    ] = False,
) -> None:
    """Print what the process of a job wrote; it is kept after the end."""
    with connect(context) as servery:
        for chunk in servery.jobs.logs(_resource_name(servery, job), follow=follow):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()


@app.command()
def resume(context: typer.Context, job: Job, output: Output = Format.TABLE) -> None:
    """Go on from the last checkpoint of a job that was cancelled or failed, in a new job."""
    with connect(context) as servery:
        resumed = servery.jobs.resume(_resource_name(servery, job))
        err.print(f"job {short(resumed.name)}", markup=False)
        raise typer.Exit(follow_job(servery, resumed.name, output))


@app.command()
def reproduce(context: typer.Context, job: Job, output: Output = Format.TABLE) -> None:
    """Do again what a job did, without publishing, and tell whether the weights are the same."""
    with connect(context) as servery:
        original = servery.jobs.get(_resource_name(servery, job))
        again = servery.jobs.reproduce(original.name)
        err.print(f"job {short(again.name)}", markup=False)
        again = end_of_job(servery, again.name)
    same = same_weights(original, again)
    if output is Format.JSON:
        print_json({"reproduced": same, "original": original, "again": again})
    else:
        print_table(
            ["", "JOB", "STATE", "WEIGHTS (SHA-256)"],
            (
                (name, short(one.name), state_name(one), one.result.weights_sha256)
                for name, one in (("original", original), ("again", again))
            ),
        )
        verdict = (
            "reproduced: the weights are the same to the last bit"
            if same
            else "NOT reproduced: the weights differ (another machine, release or number of cores?)"
        )
        if not again.HasField("result"):
            verdict = "not decided: the job did not succeed"
            print_failure(again)
        out.print(verdict, soft_wrap=True)
    raise typer.Exit(0 if same else 1)


def _resource_name(servery: Client, job: str) -> str:
    return job if "/" in job else f"{servery.tenant}/trainingJobs/{job}"


_PRIORITIES: Final = {"low": 20, "normal": 50, "high": 80}


def priority_of(text: str) -> int:
    """Return the priority a person means.

    Raises:
        typer.BadParameter: It is neither a name nor 0 to 100.
    """
    if text not in _PRIORITIES and not (text.isdecimal() and int(text) <= 100):
        raise typer.BadParameter(f"--priority {text}: give low, normal, high, or 0 to 100")
    return _PRIORITIES.get(text) or int(text)
