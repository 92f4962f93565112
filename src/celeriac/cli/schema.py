"""`celeriac migrate-schema`: the tables of databases, at a time that the operator chooses."""

from __future__ import annotations

import click

from celeriac.cli import exits
from celeriac.cli.session import Session


@click.command("migrate-schema")
@click.argument("urls", nargs=-1, metavar="[URL]...")
@click.option("--grant", default="", metavar="ROLE", help="Give this role the rights to use the tables.")
@click.pass_obj
def migrate_schema(session: Session, urls: tuple[str, ...], grant: str) -> int:
    """Make celeriac's tables in PostgreSQL, or bring them up to date.

    URL: databases; default: those of broker_url, result_backend and outbox_url. It only goes forward, may be run again,
    and workers of the version before may go on meanwhile. Without this command the tables are made at first use, where
    the user may create them.
    """
    lines = session.app.wiring.migrate(urls, grant)
    for line in lines:
        click.echo(line)
    if not lines:
        click.echo("none of broker_url, result_backend and outbox_url is a PostgreSQL database: name one")
    return exits.OK
