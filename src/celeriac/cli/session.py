"""One run of the command: what the global options said, and the app, found when it is first needed."""

from __future__ import annotations

import os
import sys
import traceback
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from celeriac.errors import CeleryError, ImproperlyConfigured

if TYPE_CHECKING:
    from celeriac.app.app import Celeriac


class Session:
    """What `ctx.obj` is. Has the attributes that plugins of Celery's command read: `app`, `workdir`, `quiet`,
    `no_color`, `echo`, `secho`, `style`, `error`."""

    def __init__(self, *, app_spec: str = "", workdir: str = "", no_color: bool = False, quiet: bool = False) -> None:
        self.app_spec = app_spec
        self.workdir = workdir
        self.no_color = no_color
        self.quiet = quiet

    @cached_property
    def app(self) -> Celeriac:
        """The app that `-A` names; without it one that knows the environment's settings and no task. Raises
        ImproperlyConfigured with one line that says where its import failed."""
        from celeriac.app.app import Celeriac

        if not self.app_spec:
            return Celeriac("celeriac")
        return find_app(self.app_spec)

    @property
    def named_app(self) -> Celeriac:
        """`app`, for commands that can do nothing without the project's tasks."""
        if not self.app_spec:
            raise click.UsageError("which app? Say celeriac -A MODULE COMMAND, where MODULE makes the app")
        return self.app

    def echo(self, message: Any = None, **how: Any) -> None:
        """Print a line."""
        click.echo(message, color=False if self.no_color else None, **how)

    def secho(self, message: Any = None, **how: Any) -> None:
        """Print a styled line."""
        click.secho(message, color=False if self.no_color else None, **how)

    def style(self, text: Any, **how: Any) -> str:
        """Style a text, unless colour is off."""
        return str(text) if self.no_color else click.style(text, **how)

    def error(self, message: Any = None, **how: Any) -> None:
        """Print a line on stderr."""
        self.secho(message, err=True, **how)


def find_app(spec: str) -> Celeriac:
    """Import the app that `-A` names. What the project's own code raises meanwhile becomes one line with its place."""
    from celeriac.app.app import Celeriac
    from celeriac.app.find import find

    try:
        found: Celeriac = find(spec, Celeriac)
        return found
    except CeleryError:
        raise
    except Exception as error:
        if os.environ.get("CELERIAC_TRACEBACK"):
            raise
        raise ImproperlyConfigured(
            f"-A {spec}: importing it failed: {_one_line(error)}{_place(error)};"
            " CELERIAC_TRACEBACK=1 shows the traceback"
        ) from error


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(error: BaseException) -> str:
    """Where the project's code stood: the deepest frame outside the standard library and of celeriac."""
    if isinstance(error, SyntaxError):
        return ""  # its text names the file and the line
    ours = str(Path(__file__).resolve().parent.parent)
    theirs = (ours, os.path.dirname(os.__file__), "<frozen", sys.prefix)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(theirs)]
    return f" ({os.path.relpath(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
