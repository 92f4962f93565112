"""The same from a coroutine: every call that waits has a twin with an `a` in front."""

import asyncio

import tasks


async def main():
    results = [await tasks.wait.adelay(0.5) for _ in range(20)]
    print(sum([await result.aget(timeout=20) for result in results]))


asyncio.run(main())
