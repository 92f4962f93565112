"""`transactions.py url broker seed`: write a row and send a task in one transaction, again and again."""

from __future__ import annotations

import random
import sys
from uuid import uuid4

import psycopg

from celeriac import Celeriac

url, broker, seed = sys.argv[1:]
chance = random.Random(int(seed))
app = Celeriac("orders", broker=broker, outbox_url=url)


def step(name: str) -> None:
    """Say what was done."""
    print(name, flush=True)


with psycopg.connect(url) as connection:
    while True:
        key = str(uuid4())
        step("begin")
        with app.transaction(connection):
            if chance.random() < 0.5:
                app.send_task("order", task_id=key)
                step("sent")
                connection.execute("INSERT INTO orders VALUES (%s)", (key,))
            else:
                connection.execute("INSERT INTO orders VALUES (%s)", (key,))
                step("inserted")
                app.send_task("order", task_id=key)
        step("before the commit")
        if chance.random() < 0.2:
            connection.rollback()
        else:
            connection.commit()
        step("after the commit")
