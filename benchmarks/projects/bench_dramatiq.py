# mypy: ignore-errors
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""dramatiq's side: its default middleware, with results where they are kept."""

import logging
import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

logging.basicConfig(level=logging.WARNING)
url = os.environ["BENCH_BROKER"]
broker = RedisBroker(url=url)
broker.add_middleware(Results(backend=RedisBackend(url=os.environ["BENCH_BACKEND"])))
dramatiq.set_broker(broker)


@dramatiq.actor
def ignored(x, y):
    """Nothing to do, and nothing kept of it."""


@dramatiq.actor(store_results=True)
def stored(x, y):
    """Nothing to do, and the result is kept."""
    return x
