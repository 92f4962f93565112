"""Results in SQL tables, where a report can read them."""

from celeriac import Celeriac

app = Celeriac("tasks", broker="sqlite://", backend="db+sqlite:///results.db", result_extended=True)


@app.task
def convert(amount: float, rate: float) -> float:
    return amount * rate


@app.task
def total(amounts: list[float]) -> float:
    return sum(amounts)
