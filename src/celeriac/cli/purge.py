"""`celeriac purge` and `celeriac release`: whole queues at once."""

from __future__ import annotations

import click

from celeriac.cli import exits
from celeriac.cli.doors import consumed_queues, queue_names, with_broker
from celeriac.cli.output import counted
from celeriac.cli.session import Session
from celeriac.cli.worker import comma_list
from celeriac.ports import Broker


@click.command()
@click.option("-f", "--force", is_flag=True, help="Don't ask.")
@click.option("-Q", "--queues", callback=comma_list, metavar="A,B", help="These queues. Default: those of the app.")
@click.option("-X", "--exclude-queues", callback=comma_list, metavar="A,B", help="All of the app's but these.")
@click.pass_obj
def purge(session: Session, force: bool, queues: tuple[str, ...], exclude_queues: tuple[str, ...]) -> int:
    """Delete the messages that wait in queues, for good. What is scheduled, parked, dead or in flight stays."""
    names = [name for name in queues or consumed_queues(session.app) if name not in exclude_queues]
    if not names:
        raise click.UsageError("no queue is left to purge")
    listed = ", ".join(names)
    if not force:
        click.confirm(f"Delete all waiting messages of {listed}?", abort=True)

    async def act(broker: Broker) -> int:
        return sum([await broker.purge(name) for name in names])

    click.echo(f"deleted {counted(with_broker(session.app, act), 'message')} of {listed}")
    return exits.OK


@click.command()
@click.option("-Q", "--queues", callback=comma_list, metavar="A,B", help="These queues. Default: all that there are.")
@click.pass_obj
def release(session: Session, queues: tuple[str, ...]) -> int:
    """Move everything that celeriac keeps aside back to where a Celery worker finds it.

    That is: what is scheduled (it keeps its eta), what is parked, and what dead workers held. Stop celeriac's workers
    first, or they take it up again.
    """

    async def act(broker: Broker) -> dict[str, int]:
        return {name: await broker.release(name) for name in queues or await queue_names(session.app, broker)}

    moved = with_broker(session.app, act)
    for name, count in moved.items():
        click.echo(f"{name}: {counted(count, 'message')}")
    if not moved:
        click.echo("there are no queues")
    return exits.OK
