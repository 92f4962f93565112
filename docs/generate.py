"""Writes what the docs take from the code: `cli.md`, `settings.md` and the tables in `differences.md`, `brokers.md` and
`result-backends.md`.

    python docs/generate.py           writes
    python docs/generate.py --check   exits 1 and says which page is behind
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from celeriac.app.wiring import FAMILIES, WIRES, Wire
from celeriac.cli.main import cli
from celeriac.model.settings import DIFFERENCES, SETTINGS, Setting

DOCS = Path(__file__).resolve().parent
NOTE = "<!-- written by docs/generate.py; change the code instead -->\n"
CLI_INTRODUCTION = """\
Global options stand before the command: `celeriac -A proj worker`. Every option of a command can be said in the
environment too: `--concurrency` of `worker` is `CELERY_WORKER_CONCURRENCY`. `python -m celeriac` is the same command.

Exit codes: 0 done, 1 failed, 2 a wrong word, URL or app, 69 no broker or nobody who answers, 73 a pidfile of another.
"""
SETTINGS_INTRODUCTION = """\
Celery's settings with their names, new and old, and celeriac's own. Where the default is not Celery's,
[differences](differences.md) says why. Set them as in Celery: `app.conf.task_time_limit = 60`,
`app.config_from_object("settings")`, `Celeriac(..., task_time_limit=60)`.

What is marked in bold is accepted, so that an old configuration loads, and switches nothing. A worker that is given one
which is *not built yet* says so in one warning.
"""


def pages() -> dict[str, str]:
    """File name -> the text that it should have."""
    return {
        "cli.md": command_line(),
        "settings.md": settings(),
        "differences.md": _with("differences.md", "differences", differences()),
        "brokers.md": _with("brokers.md", "brokers", brokers()),
        "result-backends.md": _with("result-backends.md", "result backends", result_backends()),
    }


def _with(page: str, name: str, table: str) -> str:
    """A page with a table between the marks of its name."""
    mark = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    return mark.sub(lambda found: found[1] + table + found[2], (DOCS / page).read_text())


def command_line() -> str:
    """Every command with its options, as click knows them."""
    out = ["# Command line\n", NOTE, CLI_INTRODUCTION]
    context = click.Context(cli, info_name="celeriac")
    for path, command in commands(cli, context, "celeriac"):
        out.append(f"## `{path}`\n" if path == "celeriac" else f"### `{path}`\n")
        out += [f"{' '.join(part.split())}\n" for part in (command.help or "").split("\n\n")]
        usage = " ".join(command.collect_usage_pieces(click.Context(command, info_name=path)))
        out.append(f"```text\n{path} {usage}\n```\n")
        rows = [row for row in map(option, command.params) if row]
        if rows:
            out += ["| option | meaning |\n|---|---|", *rows, ""]
    return "\n".join(out)


def commands(group: click.Group, context: click.Context, path: str) -> Iterator[tuple[str, click.Command]]:
    """The group itself, then everything below it."""
    yield path, group
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, click.Context(command, parent=context), f"{path} {name}")
        elif command is not None:
            yield f"{path} {name}", command


def option(parameter: click.Parameter) -> str | None:
    """One row, or None for an argument or a hidden option."""
    if not isinstance(parameter, click.Option) or parameter.hidden:
        return None
    value = "" if parameter.is_flag else parameter.make_metavar(click.Context(cli))
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    text = parameter.help or ""
    if parameter.show_default:
        text += f" Default: {parameter.default}."
    return f"| {' '.join(filter(None, (names, cell(value))))} | {cell(text)} |"


def settings() -> str:
    """Every setting."""
    out = ["# Settings\n", NOTE, SETTINGS_INTRODUCTION]
    ours = {row.key: row.ours for row in DIFFERENCES}
    for title, own in (("celeriac's own", True), ("Celery's", False)):
        out += [f"## {title}\n", "| setting | type | default | meaning |\n|---|---|---|---|"]
        out += [setting(row, ours) for row in sorted(SETTINGS.values()) if row.own is own]
        out.append("")
    return "\n".join(out)


def setting(row: Setting, ours: dict[str, Any]) -> str:
    """One row."""
    old = f"<br>`{row.old}`" if row.old and row.old != row.key.upper() else ""
    effect = f" **{row.effect[0].upper()}{row.effect[1:]}.**" if row.effect else ""
    return f"| `{row.key}`{old} | {row.kind} | {value(ours.get(row.key, row.default))} | {cell(row.doc + effect)} |"


def differences() -> str:
    """Every default that is not Celery's."""
    rows = ["| setting | Celery | celeriac | why | Celery's way |", "|---|---|---|---|---|"]
    for row in DIFFERENCES:
        rows.append(
            f"| `{row.key}` | {value(row.celery)} | {value(row.ours)} | {cell(row.reason)} | {cell(row.back)} |"
        )
    return "\n".join(rows) + "\n"


def brokers() -> str:
    """What each broker can do, as its adapter says."""
    rows = [
        "| URL | kept on disk | what a dead worker held goes back by | later ones in a schedule | priorities "
        "| broadcasts | a repeat is dropped | Celery beside |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for wire, names in _urls().items():
        if not wire.broker:
            continue
        can = getattr(import_module(wire.broker), f"{wire.prefix}Broker").capabilities
        told = (can.delay, can.priority, can.fanout, can.idempotent_publish, can.peers)
        back = "its lease" if can.lease else "its connection"
        cells = [", ".join(names), _yes(can.durable), back, *map(_yes, told)]
        rows.append(f"| {' | '.join(map(cell, cells))} |")
    return "\n".join(rows) + "\n"


def _yes(claim: bool) -> str:
    return "yes" if claim else "no"


def _urls() -> dict[Wire, list[str]]:
    """Every kind of server and store, with the URLs that lead to it."""
    urls: dict[Wire, list[str]] = {}
    for scheme, wire in WIRES.items():
        urls.setdefault(wire, []).append(f"`{scheme}://`")
    for family, wire in FAMILIES.items():
        urls.setdefault(wire, []).append(f"`{family}+...://`")
    return urls


def result_backends() -> str:
    """What each result backend can do, as its adapter says."""
    rows = ["| URL | who waits | what has expired goes | chords | names and bytes |", "|---|---|---|---|---|"]
    for wire, names in _urls().items():
        adapter = getattr(import_module(wire.backend), f"{wire.prefix}Backend") if wire.backend else None
        keeping = getattr(adapter, "keeping", None)
        if keeping is not None:
            told = (", ".join(names), keeping.waits, keeping.forgets, keeping.chords, keeping.layout)
            rows.append(f"| {' | '.join(map(cell, told))} |")
    return "\n".join(rows) + "\n"


def value(found: Any) -> str:
    """A default as one writes it."""
    if isinstance(found, timedelta):
        return f"{found.total_seconds():g} s"
    return f"`{cell(repr(found))}`"


def cell(text: str) -> str:
    """A text that fits into a table."""
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Write the pages, or check them."""
    behind = [name for name, text in pages().items() if not _has(DOCS / name, text)]
    if "--check" in sys.argv[1:]:
        sys.exit(f"not up to date, run `make docs`: {', '.join(behind)}" if behind else None)
    for name in behind:
        (DOCS / name).write_text(pages()[name])


def _has(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    main()
