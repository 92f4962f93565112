import os

import psycopg

from celeriac import Celeriac

DATABASE = os.environ.get("DATABASE_URL", "postgresql://localhost/shop")

app = Celeriac("shop", broker=DATABASE, backend=DATABASE)


@app.task
def confirm(order: int) -> str:
    with psycopg.connect(DATABASE) as connection:
        row = connection.execute("SELECT customer FROM orders WHERE id = %s", (order,)).fetchone()
    return f"order {order} of {row[0] if row else 'nobody'}"
