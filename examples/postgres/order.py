import psycopg
from shop import DATABASE, app, confirm

with psycopg.connect(DATABASE) as connection:
    connection.execute("CREATE TABLE IF NOT EXISTS orders (id serial PRIMARY KEY, customer text)")

with psycopg.connect(DATABASE) as connection:
    [order] = connection.execute("INSERT INTO orders (customer) VALUES ('Ada') RETURNING id").fetchone() or (0,)
    with app.transaction(connection):
        result = confirm.delay(order)
    connection.commit()
print(result.get(timeout=10))

with psycopg.connect(DATABASE) as connection:
    [order] = connection.execute("INSERT INTO orders (customer) VALUES ('Bob') RETURNING id").fetchone() or (0,)
    with app.transaction(connection):
        never = confirm.delay(order)
    connection.rollback()
print(never.state)
