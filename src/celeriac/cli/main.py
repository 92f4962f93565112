"""The door of the command: global options, the list of commands, and how errors end.

Every error that a user can mend is one line on stderr and an exit code; only a fault of celeriac shows a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import click

from celeriac.cli import exits
from celeriac.cli.session import Session
from celeriac.errors import CeleryCommandException, CeleryError, ImproperlyConfigured, OperationalError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

COMMANDS = {
    "worker": ("celeriac.cli.worker:worker", "Run tasks."),
    "demo": ("celeriac.cli.demo:demo", "See it work: run a small project, watch its tasks, check their results."),
    "call": ("celeriac.cli.call:call", "Send a task by its name and print its id."),
    "result": ("celeriac.cli.call:result", "Wait for a task's result and print it."),
    "workflow": ("celeriac.cli.workflow:workflow", "Show how a chain, group or chord stands."),
    "queues": ("celeriac.cli.queues:queues", "Show what lies where, and put single messages right."),
    "purge": ("celeriac.cli.purge:purge", "Delete the messages that wait in queues."),
    "release": ("celeriac.cli.purge:release", "Move everything celeriac keeps aside back to where Celery finds it."),
    "migrate-schema": ("celeriac.cli.schema:migrate_schema", "Make or update the tables in PostgreSQL."),
    "status": ("celeriac.cli.control:status", "Show which workers answer."),
    "inspect": ("celeriac.cli.control:inspect", "Ask workers something."),
    "control": ("celeriac.cli.control:control", "Tell workers something."),
    "report": ("celeriac.cli.control:report", "Print what a report of a fault should say."),
}
"""Name -> where the command stands and its short help, so that `--help` imports none of them."""

ABSENT = {
    "beat": "periodic tasks are not part of this version",
    "events": "watching events is not part of this version",
    "multi": "start one worker per service of your supervisor (systemd, Kubernetes) instead",
    "amqp": "RabbitMQ is not part of this version",
    "shell": "start python and import your app instead",
    "list": "`celeriac queues` lists them",
    "migrate": "`celeriac release` makes a queue Celery's again",
    "graph": "there are no bootsteps to draw",
    "upgrade": "both spellings of settings are read as they are",
    "logtool": "it is not part of this version",
}
"""Celery's commands that are not here, and what to do instead."""


class Commands(click.Group):
    """Commands by name, imported when named; those of other packages by the entry point group `celery.commands`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Ours in their order, then those of other packages."""
        return [*COMMANDS, *sorted(name for name in _plugins() if name not in COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command, or None. A plugin that can't be imported is named and left out."""
        if cmd_name in COMMANDS:
            return _load(COMMANDS[cmd_name][0])
        if (plugin := _plugins().get(cmd_name)) is not None:
            try:
                command = plugin.load()
            except Exception as error:  # somebody else's code: it must not take our own commands with it
                text = f"command {cmd_name!r} of {plugin.value} can't be loaded: {error}"
                raise click.ClickException(text) from error
            return command if isinstance(command, click.Command) else None
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that `args` begin with. Refuses an unknown one with what may have been meant."""
        name = args[0]
        if (command := self.get_command(ctx, name)) is not None:
            return name, command, args[1:]
        if name in ABSENT:
            raise click.UsageError(f"there is no {name!r}: {ABSENT[name]}")
        import difflib

        close = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
        raise click.UsageError(
            f"no such command {name!r}" + (f"; did you mean {close[0]!r}?" if close else "; see celeriac --help")
        )

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        rows = [(name, text) for name, (_, text) in COMMANDS.items()]
        rows += [(name, f"From {p.value.partition(':')[0]}.") for name, p in _plugins().items() if name not in COMMANDS]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _plugins() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points  # slow to import, and only help and foreign commands need it

    return {point.name: point for point in entry_points(group="celery.commands")}


def _load(place: str) -> click.Command:
    module, _, name = place.partition(":")
    command: click.Command = getattr(import_module(module), name)
    return command


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from celeriac import __version__

        click.echo(f"celeriac {__version__} (Python {sys.version.partition(' ')[0]})")
        ctx.exit()


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "CELERY"},
)
@click.option("-A", "--app", envvar=["APP", "CELERY_APP"], metavar="MODULE[:ATTR]", help="The app, by its module.")
@click.option(
    "-b", "--broker", envvar=["BROKER_URL", "CELERY_BROKER"], metavar="URL",
    help="The broker, before every other setting. Without one: a SQLite file in .celeriac/.",
)  # fmt: skip
@click.option(
    "--result-backend", envvar=["RESULT_BACKEND", "CELERY_RESULT_BACKEND"], metavar="URL",
    help="The result backend, before every other setting.",
)  # fmt: skip
@click.option(
    "--config", envvar=["CONFIG_MODULE", "CELERY_CONFIG"], metavar="MODULE", help="The module with the settings."
)
@click.option("--workdir", metavar="DIR", help="Change to this folder first.")
@click.option("-C", "--no-color", envvar="NO_COLOR", is_flag=True, help="No colour.")
@click.option("-q", "--quiet", is_flag=True, help="Say less.")
@click.option("--skip-checks", envvar="SKIP_CHECKS", is_flag=True, help="Don't run Django's system checks.")
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Print the version."
)
@click.pass_context
def cli(
    ctx: click.Context,
    app: str | None,
    broker: str | None,
    result_backend: str | None,
    config: str | None,
    workdir: str | None,
    no_color: bool,
    quiet: bool,
    skip_checks: bool,
) -> int | None:
    """A distributed task queue with Celery's API and wire format."""
    if workdir:
        try:
            os.chdir(workdir)
        except OSError as error:
            raise click.UsageError(f"--workdir {workdir}: {error.strerror}") from error
    here = os.getcwd()
    if here not in sys.path:  # an installed script's path does not begin with the folder it is called in
        sys.path.insert(0, here)
    for variable, value in (
        ("CELERY_BROKER_URL", broker),
        ("CELERY_RESULT_BACKEND", result_backend),
        ("CELERY_CONFIG_MODULE", config),
        ("CELERY_SKIP_CHECKS", "true" if skip_checks else None),
    ):
        if value:
            os.environ[variable] = value  # so that the processes of a worker see it too
    if no_color:
        os.environ["NO_COLOR"] = "1"
    ctx.obj = Session(app_spec=app or "", workdir=here, no_color=no_color, quiet=quiet)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
    return None


def run(words: Sequence[str] | None = None) -> int:
    """Carry out a command line (default: this process's) and return the exit code."""
    try:
        outcome: Any = cli.main(args=words, prog_name="celeriac", standalone_mode=False)
    except click.exceptions.NoSuchOption as error:
        if error.option_name in ("-A", "--app", "-b", "--broker"):
            said = f"{error.option_name} {'MODULE' if error.option_name in ('-A', '--app') else 'URL'}"
            return _say(f"{error.option_name} stands before the command: celeriac {said} {_name(error)}")
        return _say(f"{_plain(error)}{_see(error)}")
    except click.UsageError as error:
        return _say(f"{_plain(error)}{_see(error)}")
    except click.ClickException as error:
        return _say(error.format_message(), error.exit_code)
    except click.Abort:
        return _say("aborted", exits.FAILURE)
    except CeleryCommandException as error:
        return _say(str(error), error.exit_code)
    except ImproperlyConfigured as error:
        return _say(str(error))
    except OperationalError as error:
        return _say(str(error), exits.UNAVAILABLE)
    except CeleryError as error:
        return _say(f"{type(error).__name__}: {error}", exits.FAILURE)
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.OK
    return outcome if isinstance(outcome, int) else exits.OK


def _say(text: str, code: int = exits.USAGE) -> int:
    click.echo(f"celeriac: {' '.join(text.split())}", err=True)
    return code


def _plain(error: click.UsageError) -> str:
    text = error.format_message().strip().rstrip(".")
    return text[:1].lower() + text[1:]


def _name(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx is not None else "celeriac"
    return path.partition(" ")[2] or "COMMAND"


def _see(error: click.UsageError) -> str:
    """Where the help stands that would have told; nothing where the message says it already."""
    told = "--help" in error.message or "Say celeriac" in error.message or "did you mean" in error.message.lower()
    return "" if error.ctx is None or told else f" (see {error.ctx.command_path} --help)"


def main() -> NoReturn:
    """The console script."""
    sys.exit(run())
