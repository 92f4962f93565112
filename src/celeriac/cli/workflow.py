"""`celeriac workflow`: how a workflow stands."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import click

from celeriac.app.results import DISABLED
from celeriac.app.workflows import Branch, Workflows
from celeriac.cli import exits
from celeriac.cli.output import on_terminal, show_json
from celeriac.cli.session import Session
from celeriac.model.states import PENDING

STYLES = {"SUCCESS": "green", "FAILURE": "red", "REVOKED": "red", "STARTED": "cyan", "RETRY": "yellow"}


@click.group()
def workflow() -> None:
    """Look at chains, groups and chords that were sent."""


@workflow.command()
@click.argument("task_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print the tree as JSON.")
@click.pass_obj
def show(session: Session, task_id: str, as_json: bool) -> int:
    """Draw the workflow that the task ID is part of: each task with its state and when it ended."""
    app = session.app

    async def read() -> list[Branch]:
        backend = app.make_backend()
        if backend is None:
            raise click.ClickException(DISABLED)
        try:
            return await Workflows(backend, app.backend).of(task_id)
        finally:
            await backend.close()

    steps = asyncio.run(read())
    if as_json:
        show_json([step.as_dict() for step in steps])
    elif on_terminal():
        _draw(task_id, steps)
    else:
        for step in steps:
            for line in _lines(step, ""):
                click.echo(line)
    if len(steps) == 1 and steps[0].state == PENDING and not steps[0].branches:
        click.echo(f"nothing is known of {task_id}: it has not ended yet, or its result was forgotten", err=True)
        return exits.FAILURE
    return exits.OK


def _lines(branch: Branch, indent: str) -> Iterator[str]:
    words = [branch.kind, branch.name, branch.id, branch.state, branch.done or "", branch.result]
    yield indent + "  ".join(word for word in words if word)
    for inner in branch.branches:
        yield from _lines(inner, indent + "  ")


def _draw(task_id: str, steps: list[Branch]) -> None:
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    def text(branch: Branch) -> Text:
        shown = Text(f"{branch.name or branch.kind} ")
        shown.append(branch.id, "dim")
        shown.append(f"  {branch.state}", STYLES.get(branch.state, "yellow"))
        if branch.done:
            shown.append(f"  {branch.done[:19].replace('T', ' ')}", "dim")
        if branch.result:
            shown.append(f"  {branch.result}")
        return shown

    def grow(tree: Tree, branch: Branch) -> None:
        for inner in branch.branches:
            grow(tree.add(text(inner)), inner)

    tree = Tree(Text(f"workflow of {task_id}"))
    for step in steps:
        grow(tree.add(text(step)), step)
    Console().print(tree)
