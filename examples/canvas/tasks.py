"""Small tasks to put together."""

from celeriac import Celeriac

app = Celeriac("canvas")


@app.task
def add(x, y):
    return x + y


@app.task
def double(x):
    return 2 * x


@app.task
def total(numbers):
    return sum(numbers)


@app.task
def fail(x):
    raise ValueError(f"{x} as asked")


@app.task
def tell(request, exc, traceback):
    print(f"{request.task} failed: {exc}")
