"""`celeriac status`, `inspect` and `control`: what workers are asked and told over the broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from celeriac.cli import exits
from celeriac.cli.output import counted, show_json
from celeriac.cli.session import Session
from celeriac.cli.worker import comma_list
from celeriac.errors import CeleryCommandException

Command = TypeVar("Command", bound=Callable[..., Any])


def asking(function: Command) -> Command:
    """Add the options of whatever waits for answers."""
    for decorate in (
        click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON."),
        click.option(
            "-d", "--destination", callback=comma_list, metavar="A,B", help="Ask these nodes only. Default: all."
        ),
        click.option(
            "-t", "--timeout", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True, metavar="S",
            help="Wait so long for answers.",
        ),
    ):
        function = decorate(function)
    return function


@click.command()
@asking
@click.pass_obj
def status(session: Session, timeout: float, destination: tuple[str, ...], as_json: bool) -> int:
    """Show which workers answer. Exits 69 if none does."""
    return _ping(session, timeout, destination, as_json, brief=True)


@click.group()
def inspect() -> None:
    """Ask workers something."""


@inspect.command()
@asking
@click.pass_obj
def ping(session: Session, timeout: float, destination: tuple[str, ...], as_json: bool) -> int:
    """Ask workers for a sign of life. Exits 69 if none answers."""
    return _ping(session, timeout, destination, as_json, brief=False)


def _ping(session: Session, timeout: float, destination: tuple[str, ...], as_json: bool, *, brief: bool) -> int:
    asked = list(destination) or None
    answers = session.app.control.inspect(destination=asked, timeout=timeout).ping() or {}
    if not answers:
        raise CeleryCommandException(f"no worker answered within {timeout:g} s", exits.UNAVAILABLE)
    if as_json:
        show_json(answers)
        return exits.OK
    for node, answer in sorted(answers.items()):
        session.echo(f"{node}: {'OK' if brief else answer.get('ok', answer)}")
    if not session.quiet:
        session.echo(f"{counted(len(answers), 'node')} online")
    return exits.OK


@click.group()
def control() -> None:
    """Tell workers something."""


@control.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--terminate", is_flag=True, help="End the tasks if they run, too.")
@click.option("-s", "--signal", default="SIGTERM", show_default=True, metavar="NAME", help="By this signal.")
@click.pass_obj
def revoke(session: Session, ids: tuple[str, ...], terminate: bool, signal: str) -> int:
    """Revoke tasks: they are not started any more. The broker remembers it, so a worker that is down now obeys too."""
    session.app.control.revoke(list(ids), terminate=terminate, signal=signal)
    click.echo(f"revoked {counted(len(ids), 'task')}" + (", also while running" if terminate else ""))
    return exits.OK


@click.command()
@click.pass_obj
def report(session: Session) -> int:
    """Print what a report of a fault should say: versions, platform, settings. Passwords and keys are masked."""
    click.echo(session.app.bugreport())
    return exits.OK
