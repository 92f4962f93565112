"""What a task can be told, one thing after the other."""

import asyncio
import time
from urllib.error import URLError
from urllib.request import urlopen

from celeriac import Celeriac
from celeriac.errors import SoftTimeLimitExceeded

app = Celeriac("tour")


@app.task
def add(x, y):
    return x + y


@app.task
async def wait(seconds):
    await asyncio.sleep(seconds)
    return seconds


@app.task(bind=True, max_retries=5)
def fetch(self, url):
    try:
        return urlopen(url, timeout=5).read().decode()
    except URLError as exc:
        raise self.retry(exc=exc, countdown=0.2 * 2**self.request.retries) from exc


@app.task(autoretry_for=(URLError,), retry_backoff=True, retry_kwargs={"max_retries": 5})
def fetch_simply(url):
    return urlopen(url, timeout=5).read().decode()


@app.task(soft_time_limit=0.5, time_limit=5)
def crunch():
    try:
        time.sleep(60)
    except SoftTimeLimitExceeded:
        return "half done"


@app.task(bind=True)
def import_rows(self, count):
    for done in range(count):
        self.update_state(state="PROGRESS", meta={"done": done, "of": count})
    return count


@app.task(acks_late=False)
def charge(customer):
    return f"charged {customer} once at most"


@app.task(ignore_result=True)
def log(text):
    print(text)


@app.task
def tell(request, exc, traceback):
    print(f"{request.id} failed: {exc!r}")


@app.task
def fail():
    raise ValueError("as asked")

