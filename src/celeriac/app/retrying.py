"""How a task asks to be run again: what `Task.retry` raises, and the wrapper of `autoretry_for`."""

from __future__ import annotations

import functools
from collections.abc import Coroutine, Mapping, Sequence
from types import MethodType
from typing import Any

from celeriac.errors import Retry
from celeriac.model.retry import AutoRetry, may_retry


def prepare(
    task: Any,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    exc: BaseException | None,
    eta: Any,
    countdown: float | None,
    max_retries: int | None,
    options: Mapping[str, Any],
) -> Retry:
    """The Retry of the run that is current. Raises `exc` (or MaxRetriesExceededError) when there may be none.

    Its `sig` holds what changes in the message; what it does not say stays as it is."""
    request = task.request
    if request.called_directly:
        raise exc if exc is not None else Retry("Task can be retried", None)
    if not may_retry(request.retries, task.max_retries if max_retries is None else max_retries):
        if exc is not None:
            raise exc
        shown_args, shown_kwargs = request.args, request.kwargs
        raise task.MaxRetriesExceededError(
            f"Can't retry {task.name}[{request.id}] args:{shown_args} kwargs:{shown_kwargs}",
            task_args=shown_args,
            task_kwargs=shown_kwargs,
        )
    if not eta and countdown is None:
        countdown = task.default_retry_delay
    given = {key: value for key, value in options.items() if value is not None}
    given["eta" if eta else "countdown"] = eta or countdown
    signature: dict[str, Any] = {"task": task.name, "options": given}
    if args is not None or kwargs is not None:
        signature["args"], signature["kwargs"] = _complete(task, args, kwargs, request)
    return Retry(exc=exc, when=eta or countdown, is_eager=request.is_eager, sig=signature)


def _complete(task: Any, args: Any, kwargs: Any, request: Any) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of the next run. Where only args or only kwargs are given, the other ones stay, as far as they don't
    name the same parameter."""
    old_args, old_kwargs = list(request.args or ()), dict(request.kwargs or {})
    names = task.shape.names
    if kwargs is None:
        taken = set(names[: len(args)])
        return list(args), {key: value for key, value in old_kwargs.items() if key not in taken}
    if args is not None:
        return list(args), dict(kwargs)
    for index, name in enumerate(names[: len(old_args)]):
        if name in kwargs:
            # what stands behind a parameter that is named now has to be named as well
            named = dict(zip(names[index:], old_args[index:], strict=False))
            return old_args[:index], {**named, **kwargs}
    return old_args, dict(kwargs)


def add_autoretry(task: Any) -> None:
    """Wrap `task.run` so that errors of `autoretry_for` are retried. Does nothing where there are none, or the second
    time."""
    expected = tuple(task.autoretry_for or ())
    if not expected or "_orig_run" in task.__dict__:
        return
    rule = AutoRetry(
        expected,
        tuple(task.dont_autoretry_for or ()),
        dict(task.retry_kwargs or {}),
        task.retry_backoff,
        float(task.retry_backoff_max),
        bool(task.retry_jitter),
    )
    original = task.run

    def answer(exc: BaseException) -> None:
        import random

        if rule.applies_to(exc):
            task.retry(exc=exc, **rule.arguments(task.request.retries, random.random))

    async def awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await coroutine
        except Exception as exc:
            answer(exc)
            raise

    @functools.wraps(original)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            value = original(*args, **kwargs)
        except Exception as exc:
            answer(exc)
            raise
        return awaited(value) if isinstance(value, Coroutine) else value

    task._orig_run = original
    task.run = MethodType(lambda _, *args, **kwargs: run(*args, **kwargs), task) if _is_bound(original, task) else run


def _is_bound(run: Any, task: Any) -> bool:
    return getattr(run, "__self__", None) is task
