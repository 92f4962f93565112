"""Runs some tasks, and asks the table what they did."""

import sqlite3

from tasks import convert, total

from celeriac import chord, group

print(chord(group(convert.s(n, 2.0) for n in range(3)), total.s())().get(timeout=10))
with sqlite3.connect("results.db") as database:
    print(database.execute("SELECT name, status, count(*) FROM celery_taskmeta GROUP BY name, status").fetchall())
