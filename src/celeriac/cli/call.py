"""`celeriac call` and `celeriac result`: one task, by hand."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import click

from celeriac.cli import exits
from celeriac.cli.output import show_json
from celeriac.cli.session import Session
from celeriac.errors import TimeoutError


def _json(kind: type) -> Any:
    def read(_ctx: click.Context, parameter: click.Parameter, value: str) -> Any:
        word = "list" if kind is list else "object"
        try:
            loaded = json.loads(value)
        except ValueError as error:
            raise click.BadParameter(f"{value!r} is not JSON ({error})") from error
        if not isinstance(loaded, kind):
            raise click.BadParameter(f"{value!r} is not a JSON {word}")
        return loaded

    return read


def _moment(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not an ISO 8601 time such as 2030-01-31T12:00:00+00:00") from error


def _moment_or_seconds(ctx: click.Context, parameter: click.Parameter, value: str | None) -> datetime | float | None:
    if value is not None:
        try:
            return float(value)
        except ValueError:
            pass
    return _moment(ctx, parameter, value)


@click.command()
@click.argument("name")
@click.option("-a", "--args", "positional", default="[]", callback=_json(list), metavar="LIST", help="Arguments, JSON.")
@click.option("-k", "--kwargs", "named", default="{}", callback=_json(dict), metavar="OBJECT", help="Keywords, JSON.")
@click.option("--eta", callback=_moment, metavar="TIME", help="Run at this time (ISO 8601).")
@click.option("--countdown", type=float, metavar="S", help="Run in S seconds.")
@click.option("--expires", callback=_moment_or_seconds, metavar="TIME|S", help="Don't run after that.")
@click.option("--serializer", default="json", show_default=True, help="How arguments are written.")
@click.option("--queue", metavar="NAME", help="Send to this queue.")
@click.option("--exchange", metavar="NAME", help="Send to this exchange.")
@click.option("--routing-key", metavar="KEY", help="Send with this routing key.")
@click.pass_obj
def call(session: Session, /, name: str, positional: list[Any], named: dict[str, Any], **options: Any) -> int:
    """Send the task NAME and print its id. The task need not be known here."""
    said = {key: value for key, value in options.items() if value is not None}
    if "eta" in said and "countdown" in said:
        raise click.UsageError("say --eta or --countdown, not both")
    click.echo(session.app.send_task(name, args=positional, kwargs=named, **said).id)
    return exits.OK


@click.command()
@click.argument("task_id", metavar="ID")
@click.option("-t", "--task", metavar="NAME", help="Read it with this task's result backend.")
@click.option("--traceback", is_flag=True, help="Print the traceback instead of the value.")
@click.option("--timeout", type=float, metavar="S", help="Wait at most S seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print state and value as JSON.")
@click.pass_obj
def result(
    session: Session, task_id: str, task: str | None, traceback: bool, timeout: float | None, as_json: bool
) -> int:
    """Wait for the task ID and print what it returned. Exits 1 if it failed."""
    handle = (session.named_app.tasks[task] if task else session.app).AsyncResult(task_id)
    try:
        value = handle.get(timeout=timeout, propagate=False)
    except TimeoutError:
        raise click.ClickException(f"no result of {task_id} within {timeout:g} s (state {handle.state})") from None
    failed = not handle.successful()
    if as_json:
        shown = f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else value
        show_json({"id": task_id, "state": handle.state, "result": shown, "traceback": handle.traceback})
    elif traceback:
        click.echo(handle.traceback or "")
    elif failed:
        click.echo(f"{handle.state}: {type(value).__name__}: {value}", err=True)
        if handle.traceback:
            click.echo(handle.traceback.rstrip(), err=True)
    else:
        click.echo(value if isinstance(value, str) else repr(value))
    return exits.FAILURE if failed else exits.OK
