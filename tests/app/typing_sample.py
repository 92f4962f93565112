"""What type checkers know of tasks. Checked by mypy and pyright, with mistakes that they have to find; never run."""

from __future__ import annotations

from typing import Any, assert_type

from celeriac import AsyncResult, Celeriac, GroupResult, Signature, Task, chord, group, shared_task

app = Celeriac("typed")


@app.task
def add(x: int, y: int = 0) -> int:
    """Plain."""
    return x + y


@app.task(name="other", max_retries=3)
def named(text: str) -> list[str]:
    """With options."""
    return [text]


@app.task(bind=True)
def bound(self: Task[..., Any], x: int) -> str:
    """Its first argument is the task."""
    return str(self.request.id) + str(x)


@app.task
async def slow(x: int) -> float:
    """A coroutine function: the result is what it returns in the end."""
    return x / 2


@shared_task
def common(x: bytes) -> bytes:
    """Of any app."""
    return x


def sync_calls() -> None:
    """Results know what the function returns."""
    assert_type(add(1, y=2), int)
    assert_type(add.delay(1), AsyncResult[int])
    assert_type(add.delay(1, y=2).get(timeout=1), int)
    assert_type(named.delay("a").get(), list[str])
    assert_type(bound.delay(1), AsyncResult[str])
    assert_type(slow.delay(1), AsyncResult[float])
    assert_type(common.delay(b"x"), AsyncResult[bytes])
    assert_type(add.apply_async((1,), countdown=3), AsyncResult[int])
    assert_type(slow.apply_async((1,)), AsyncResult[float])
    assert_type(add.s(1, 2), Signature[int])
    assert_type(add.s(1).delay(), AsyncResult[int])
    assert_type(slow.s(1), Signature[float])
    assert_type(add.s(1) | slow.s(), Signature[float])
    assert_type((slow.s(1) | add.s()).delay(), AsyncResult[int])
    assert_type(add.s(1).clone((2,)).set(queue="q"), Signature[int])
    assert_type(group([add.s(1), slow.s(2)]).delay(), GroupResult)
    assert_type(add.chunks([(1, 2)], 1)(), GroupResult)
    assert_type(chord([add.s(1)], named.s()) | add.s(), Signature[int])


async def async_calls() -> None:
    """So do the asynchronous twins."""
    assert_type(await add.adelay(1), AsyncResult[int])
    assert_type(add.delay_many([(1,), {"x": 2}]), list[AsyncResult[int]])
    assert_type(await slow.adelay_many([(1,)]), list[AsyncResult[float]])
    assert_type(await (await add.adelay(1)).aget(), int)
    assert_type(await (await slow.adelay(1)), float)
    assert_type(await slow(1), float)


def mistakes() -> None:
    """Each of these lines is an error."""
    add.delay("a")  # type: ignore[arg-type]
    add.delay()  # type: ignore[call-arg]
    add.delay(1, z=2)  # type: ignore[call-arg]
    named.delay(1)  # type: ignore[arg-type]
    bound.delay("a")  # type: ignore[arg-type]
    slow.delay("a")  # type: ignore[call-overload]
    common.delay("a")  # type: ignore[arg-type]
