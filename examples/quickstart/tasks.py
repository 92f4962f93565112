"""A project of one file."""

from celeriac import Celeriac

app = Celeriac("tasks")


@app.task
def add(x: int, y: int) -> int:
    return x + y
