"""`celeriac demo`: starts a worker, sends it a small project's tasks, shows what happens, checks every outcome.

Needs no server and leaves nothing behind: the broker is a SQLite file in a folder that goes when the demo went well.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import click

from celeriac.cli import exits
from celeriac.cli.output import counted, on_terminal
from celeriac.cli.session import Session

QUEUE = "celeriac-demo"
APP = "celeriac.cli.demo_tasks"
LIMIT = 90.0
"""Seconds after which the demo gives up."""
COUNTDOWN = 3.0


@dataclass
class Row:
    """One line of the demo: one task, or many of a kind."""

    call: str
    shows: str
    """What the line shows of celeriac."""
    handles: list[Any]
    expected: Callable[[list[Any]], bool]
    """Whether the results (values, or the exceptions that were raised) are as they should be."""
    sent: float = field(default_factory=time.monotonic)
    state: str = "PENDING"
    took: float | None = None
    result: str = ""
    right: bool | None = None
    """None: not known yet."""
    values: list[Any] = field(default_factory=list)

    def look(self) -> bool:
        """Ask how it stands. True if the row has changed."""
        if self.right is not None:
            return False
        done = [handle for handle in self.handles if handle.ready()]
        state = self.handles[0].state if len(self.handles) == 1 else f"{len(done)}/{len(self.handles)}"
        if len(done) == len(self.handles):
            self.values = [handle.get(timeout=5, propagate=False) for handle in self.handles]
            self.took = time.monotonic() - self.sent
            self.right = self.expected(self.values)
            self.result = _shown(self.values)
        changed = state != self.state
        self.state = state
        return changed


class Screen(Protocol):
    """Where the rows are shown."""

    def show(self, rows: list[Row]) -> None:
        """Show the rows as they are now."""


class PlainScreen:
    """One line for each row that is finished."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def show(self, rows: list[Row]) -> None:
        """Print the rows that have been finished since."""
        for row in rows:
            if row.right is not None and row.call not in self._seen:
                self._seen.add(row.call)
                mark = "ok " if row.right else "BAD"
                click.echo(f"{mark} {row.call:<24} {row.state:<8} {row.took or 0:5.2f} s  {row.result:<48} {row.shows}")


class LiveScreen:
    """A table that is drawn anew while the tasks run."""

    def __init__(self, live: Any) -> None:
        self._live = live

    def show(self, rows: list[Row]) -> None:
        """Draw the table."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        colors = {"SUCCESS": "green", "FAILURE": "red", "RETRY": "yellow", "STARTED": "cyan"}
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        columns = ["", "task", "state", "took", "result", "what it shows"]
        if self._live.console.width < 120:
            columns.pop()
        for column in columns:
            table.add_column(column, justify="right" if column == "took" else "left", no_wrap=True)
        for row in rows:
            mark = Text("✓", "green") if row.right else Text("✗", "red") if row.right is False else Text("·", "dim")
            took = f"{row.took:.2f} s" if row.took is not None else ""
            state = Text(row.state, colors.get(row.state, "default"))
            cells = (mark, row.call, state, took, Text(row.result), Text(row.shows, "dim"))
            table.add_row(*cells[: len(columns)])
        self._live.update(table)


@contextmanager
def screen() -> Iterator[Screen]:
    """The live table on a terminal, plain lines elsewhere."""
    if not on_terminal():
        yield PlainScreen()
        return
    from rich.live import Live

    with Live(refresh_per_second=12) as live:
        yield LiveScreen(live)


class Worker(AbstractContextManager["Worker"]):
    """A worker as a process of its own, as it would run in production."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "worker.log"
        words = ["-A", APP, "worker", "-n", "demo@%h", "-c", "2", "-l", "INFO", "-Q", QUEUE]
        with self._log.open("wb") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "celeriac", *words],
                cwd=folder, env=_environment(), stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def check(self) -> None:
        """Raise ClickException with the end of its log if it has ended."""
        if (code := self._process.poll()) is not None:
            raise click.ClickException(f"the worker ended with {code}; its log ends so: {self.tail()}")

    def stop(self) -> int:
        """Stop it warmly and return its exit code; kill it when it does not stop."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(20)

    def tail(self) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace")[-1500:] or "(empty)"

    def __exit__(self, *_error: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@click.command()
@click.option("--keep", is_flag=True, help="Keep the folder with the database and the worker's log.")
@click.pass_context
def demo(ctx: click.Context, keep: bool) -> int:
    """See it work: run a small project, watch its tasks, check their results.

    Starts a worker on a SQLite file in a folder of its own (on the broker that -b names, if it does), sends it tasks
    of every kind, shows what becomes of them and stops the worker. Exits 0 only if every outcome was as expected.
    """
    session: Session = ctx.obj
    folder = Path(tempfile.mkdtemp(prefix="celeriac-demo-"))
    database = f"sqlite:///{folder}/celeriac.db"
    broker = _said(ctx, "broker") or database
    os.environ["CELERY_BROKER_URL"] = broker
    os.environ["CELERY_RESULT_BACKEND"] = _said(ctx, "result_backend") or broker
    if not session.quiet:
        click.echo(f"folder: {folder}")
    faults = ["the demo was called off"]
    try:
        with Worker(folder) as worker:
            rows = play(worker)
            faults = [f"{row.call}: {row.state} {row.result}" for row in rows if not row.right]
            if code := worker.stop():
                faults.append(f"the worker ended with {code}, not 0")
    finally:
        if faults or keep:
            click.echo(f"kept: {folder}/celeriac.db and worker.log", err=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    for fault in faults:
        click.echo(f"celeriac: not as expected: {fault}", err=True)
    if not faults:
        sent = sum(len(row.handles) for row in rows)
        click.echo(f"{counted(sent, 'task')}: every outcome as expected; the worker stopped warmly")
    return exits.FAILURE if faults else exits.OK


def play(worker: Worker) -> list[Row]:
    """Send the tasks and show them until all are done. Raises ClickException when that takes too long."""
    from celeriac.cli import demo_tasks as tasks

    texts = documents()
    end = time.monotonic() + LIMIT
    due = time.time() + COUNTDOWN
    counts = Row(
        f"count_words, {len(texts)} texts", "real work, spread over two processes",
        [tasks.count_words.delay(str(path)) for path in texts],
        lambda values: all(isinstance(value, dict) for value in values),
    )  # fmt: skip
    rows = [
        Row("add(2, 3)", "a plain function", [tasks.add.delay(2, 3)], lambda v: v == [5]),
        Row("listen(0.2)", "a coroutine", [tasks.listen.delay(0.2)], lambda v: v == ["heard nothing for 0.2 s"]),
        Row("knock()", "retried twice, then succeeds", [tasks.knock.delay()], lambda v: v == [2]),
        Row("divide(1, 0)", "fails, the caller is told", [tasks.divide.delay(1, 0)], _is_division_by_zero),
        Row("survive()", "its process is killed; it runs again", [tasks.survive.delay()], lambda v: "not lost" in v[0]),
        Row(
            "remind(…)", f"sent with countdown={COUNTDOWN:g}; seconds late",
            [tasks.remind.apply_async((due,), countdown=COUNTDOWN)], lambda v: 0 <= v[0] < 10,
        ),
        counts,
    ]  # fmt: skip
    with screen() as where:
        while any(row.right is None for row in rows):
            changed = [row.look() for row in rows]
            if counts.right and rows[-1] is counts:
                rows.append(combined(counts, texts))
            if any(changed):
                where.show(rows)
            if time.monotonic() > end:
                left = ", ".join(row.call for row in rows if row.right is None)
                raise click.ClickException(f"not done after {LIMIT:g} s: {left}; the worker's log: {worker.tail()}")
            worker.check()
            time.sleep(0.05)
        where.show(rows)
    return rows


def combined(counts: Row, texts: list[Path]) -> Row:
    """The row that adds up the counts of all texts."""
    from celeriac.cli import demo_tasks as tasks

    wanted = [list(pair) for pair in tasks.combine.run([tasks.count_words.run(str(path)) for path in texts])]
    handle = tasks.combine.delay(counts.values)
    return Row("combine(counts)", "one result out of many", [handle], lambda values: values == [wanted])


def documents() -> list[Path]:
    """The texts whose words are counted: the project's pages in a checkout, the package's own source elsewhere."""
    package = Path(__file__).resolve().parent.parent
    top = package.parent.parent
    pages = [*top.glob("README.md"), *sorted((top / "docs").glob("*.md"))] if (top / "pyproject.toml").exists() else []
    return (pages or sorted(package.rglob("*.py")))[:40]


def _environment() -> dict[str, str]:
    """The worker's environment: the demo's broker, and none of the settings of whoever tries it out."""
    keep = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_") or name in keep}
    home = str(Path(__file__).resolve().parent.parent.parent)
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))}


def _said(ctx: click.Context, option: str) -> str | None:
    """A global option, if it was said on the command line: the demo must not run on a broker that it finds in the
    environment."""
    parent = ctx.parent
    if parent is None or parent.get_parameter_source(option) is not click.core.ParameterSource.COMMANDLINE:
        return None
    value: str | None = parent.params.get(option)
    return value


def _is_division_by_zero(values: list[Any]) -> bool:
    return isinstance(values[0], ZeroDivisionError)


def _shown(values: list[Any]) -> str:
    if len(values) > 1:
        total = sum(sum(value.values()) for value in values if isinstance(value, dict))
        return f"{total} words"
    value = values[0]
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    if isinstance(value, list):
        return ", ".join(f"{word} {count}" for word, count in value[:4])
    return str(value)
