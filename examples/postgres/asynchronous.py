import asyncio

import asyncpg
from shop import DATABASE, app, confirm


async def main() -> None:
    connection = await asyncpg.connect(DATABASE)
    async with connection.transaction():
        order = await connection.fetchval("INSERT INTO orders (customer) VALUES ('Cleo') RETURNING id")
        with app.transaction(connection):
            result = await confirm.adelay(order)
    await connection.close()
    print(await result.aget(timeout=10))
    await app.aclose()


asyncio.run(main())
