"""`celeriac queues`: what lies where, and single messages put right: shown, retried, removed, cancelled."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

import click

from celeriac.cli import exits
from celeriac.cli.doors import queue_names, with_broker
from celeriac.cli.output import counted, duration, show_json, show_table
from celeriac.cli.session import Session
from celeriac.cli.worker import comma_list
from celeriac.errors import InvalidTaskError
from celeriac.model.message import Item
from celeriac.ports import Broker, Place

CANCELLED_FOR = 30 * 86400.0
"""Seconds for which the broker remembers that a task was cancelled."""
BATCH = 500
"""Entries read at a time."""

Command = TypeVar("Command", bound=Callable[..., Any])


def places(*allowed: Place, default: Place) -> Callable[[Command], Command]:
    """Add one flag for each place: `--dead`, `--scheduled` …"""

    def add(function: Command) -> Command:
        for place in reversed(allowed):
            flag = f"--{place.value.replace(' ', '-')}"
            text = f"What is {place.value}." + (" This is the default." if place is default else "")
            function = click.option(flag, "place", flag_value=place.value, default=None, help=text)(function)
        return function

    return add


@click.group(invoke_without_command=True)
@click.option("-Q", "--queues", "named", callback=comma_list, metavar="A,B", help="Only these.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def queues(ctx: click.Context, named: tuple[str, ...], as_json: bool) -> int | None:
    """Show what lies where, and put single messages right.

    ready: waits for a worker. in flight: a worker has it. scheduled: waits for its time. parked: waits for a limit.
    dead: given up, with the reason.
    """
    if ctx.invoked_subcommand is not None:
        return None
    session: Session = ctx.obj

    async def look(broker: Broker) -> dict[str, Any]:
        names = named or await queue_names(session.app, broker)
        counts = {name: await broker.count(name) for name in names}
        return {"broker": broker.describe(), "queues": counts}

    found = with_broker(session.app, look)
    if as_json:
        fields = ("ready", "oldest", "in_flight", "scheduled", "parked", "dead")
        rows = [{"name": name, **{f: getattr(c, f) for f in fields}} for name, c in found["queues"].items()]
        show_json({"broker": found["broker"], "queues": rows})
        return exits.OK
    click.echo(f"broker: {found['broker']}")
    numbers = ("ready", "oldest", "in flight", "scheduled", "parked", "dead")
    show_table(
        ("queue", *numbers),
        [
            (name, str(c.ready), duration(c.oldest), str(c.in_flight), str(c.scheduled), str(c.parked), str(c.dead))
            for name, c in found["queues"].items()
        ],
        right=numbers,
    )
    return exits.OK


@queues.command()
@click.argument("queue")
@places(Place.READY, Place.SCHEDULED, Place.IN_FLIGHT, Place.PARKED, Place.DEAD, default=Place.READY)
@click.option("-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def show(session: Session, queue: str, place: str | None, limit: int, as_json: bool) -> int:
    """List messages of QUEUE, next to be served first."""
    where = Place(place or Place.READY)

    async def look(broker: Broker) -> list[Item]:
        found = []
        async for item in _browse(broker, where, queue):
            found.append(item)
            if len(found) == limit:
                break
        return found

    entries = [describe(item) for item in with_broker(session.app, look)]
    if as_json:
        show_json(entries)
        return exits.OK
    if not entries:
        click.echo(f"nothing is {where.value} in queue {queue}")
        return exits.OK
    extra: dict[Place, tuple[str, Callable[[dict[str, Any]], str]]] = {
        Place.READY: ("retries", lambda entry: str(entry["retries"])),
        Place.SCHEDULED: ("due in", lambda entry: duration(entry["due"] and entry["due"] - time.time())),
        Place.IN_FLIGHT: ("worker", lambda entry: entry["worker"]),
        Place.PARKED: ("limit", lambda entry: entry["limit"]),
        Place.DEAD: ("reason", lambda entry: entry["reason"]),
    }
    column, cell = extra[where]
    show_table(
        ("task id", "task", "arguments", column),
        [(e["task_id"] or e["id"], e["task"], _arguments(e), cell(e)) for e in entries],
        right=("retries", "due in"),
    )
    return exits.OK


@queues.command()
@click.argument("queue")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@places(Place.DEAD, Place.SCHEDULED, Place.PARKED, default=Place.DEAD)
@click.option("--all", "every", is_flag=True, help="All of them, instead of single ids.")
@click.pass_obj
def retry(session: Session, queue: str, ids: tuple[str, ...], place: str | None, every: bool) -> int:
    """Put dead messages of QUEUE back to be run (or scheduled or parked ones, now)."""
    return _act(session, queue, ids, Place(place or Place.DEAD), every, "put back", lambda broker: broker.restore)


@queues.command()
@click.argument("queue")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@places(Place.DEAD, Place.READY, Place.SCHEDULED, Place.PARKED, default=Place.DEAD)
@click.option("--all", "every", is_flag=True, help="All of them, instead of single ids.")
@click.option("-f", "--force", is_flag=True, help="Don't ask.")
@click.pass_obj
def remove(session: Session, queue: str, ids: tuple[str, ...], place: str | None, every: bool, force: bool) -> int:
    """Delete dead messages of QUEUE (or ready, scheduled or parked ones) for good. Nothing is stored as their result:
    `cancel` ends a task so that those who wait for it are told."""
    where = Place(place or Place.DEAD)
    if every and not ids and not force:
        click.confirm(f"Delete everything that is {where.value} in queue {queue}?", abort=True)
    return _act(session, queue, ids, where, every, "deleted", lambda broker: broker.remove)


@queues.command()
@click.argument("queue")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.pass_obj
def cancel(session: Session, queue: str, ids: tuple[str, ...]) -> int:
    """Cancel tasks of QUEUE by id: the next worker that gets them ends them as REVOKED, scheduled ones at once. A task
    that runs already is not touched (see `control revoke --terminate`)."""

    async def act(broker: Broker) -> int:
        early = []
        for where in (Place.SCHEDULED, Place.PARKED):
            early += [(where, item.id, _task_id(item)) for item in (await _pick(broker, where, queue, ids)).values()]
        names = {task for _, _, task in early if task} | set(ids) - {entry for _, entry, _ in early}
        await broker.cancel(sorted(names), CANCELLED_FOR)
        for where in (Place.SCHEDULED, Place.PARKED):  # only now: a worker must not see one before it is cancelled
            await broker.restore(where, queue, [entry for place, entry, _ in early if place is where])
        return len(names)

    click.echo(f"cancelled {counted(with_broker(session.app, act), 'task')}")
    return exits.OK


def _act(
    session: Session,
    queue: str,
    ids: tuple[str, ...],
    where: Place,
    every: bool,
    done: str,
    choose: Callable[[Broker], Callable[..., Any]],
) -> int:
    if every == bool(ids):
        raise click.UsageError("say which: one or more ids, or --all")

    async def act(broker: Broker) -> tuple[int, list[str]]:
        if every:
            entries, missing = [item.id async for item in _browse(broker, where, queue)], []
        else:
            picked = await _pick(broker, where, queue, ids)
            entries, missing = [item.id for item in picked.values()], [word for word in ids if word not in picked]
        count = 0
        for start in range(0, len(entries), BATCH):
            count += await choose(broker)(where, queue, entries[start : start + BATCH])
        return count, missing

    count, missing = with_broker(session.app, act)
    click.echo(f"{counted(count, 'message')} {done}")
    if missing:
        click.echo(f"celeriac: not {where.value} in queue {queue}: {', '.join(missing)}", err=True)
        return exits.FAILURE
    return exits.OK


async def _browse(broker: Broker, where: Place, queue: str) -> AsyncIterator[Item]:
    cursor = ""
    while True:
        page = await broker.browse(where, queue, BATCH, cursor)
        for item in page.items:
            yield item
        cursor = page.cursor
        if not cursor:
            return


async def _pick(broker: Broker, where: Place, queue: str, words: Sequence[str]) -> dict[str, Item]:
    """The entries that `words` mean: each is a task id, or the broker's own name of an entry."""
    wanted, found = set(words), {}
    async for item in _browse(broker, where, queue):
        for word in wanted & {item.id, _task_id(item)}:
            found[word] = item
        if len(found) == len(wanted):
            break
    return found


def _task_id(item: Item) -> str:
    return str(describe(item)["task_id"])


def describe(item: Item) -> dict[str, Any]:
    """One message as a dict for people and scripts. An unreadable one says why in place of its task."""
    from celeriac.wire.task import read_head

    entry: dict[str, Any] = {
        "id": item.id, "task_id": "", "task": "", "args": "", "kwargs": "", "retries": 0,
        "due": item.due, "reason": item.reason, "limit": item.key, "worker": item.owner,
    }  # fmt: skip
    try:
        head = read_head(item.blob)
    except InvalidTaskError as error:
        entry["task"] = f"(unreadable: {error})"
        return entry
    entry.update(task_id=head.id, task=head.task, args=head.argsrepr or "", kwargs=head.kwargsrepr or "")
    entry.update(retries=head.retries)
    return entry


def _arguments(entry: dict[str, Any]) -> str:
    """The arguments in one short line."""
    args, kwargs = entry["args"][1:-1].rstrip(","), entry["kwargs"][1:-1]  # without (), [] and {}
    text = ", ".join(part for part in (args, kwargs) if part)
    return text if len(text) <= 60 else text[:57] + "..."
