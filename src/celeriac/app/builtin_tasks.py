"""The tasks that every app has, because messages of peers name them: maps, chunks, shapes sent as tasks by old
producers, and the task that watches over a chord where the result store of a peer can't count."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from celeriac.app import publish
from celeriac.app.canvas import chord, chunks, maybe_signature, signature
from celeriac.app.joining import allow_join_result
from celeriac.app.lineage import result_from_tuple
from celeriac.canvas import tree
from celeriac.errors import ChordError, OperationalError, Retry
from celeriac.model import states
from celeriac.runtime.context import Context
from celeriac.runtime.errback import takes_failure


def add(app: Any) -> None:
    """Give an app these tasks. One of its own under such a name stays."""
    for name, function, options in _TASKS:
        if app.known_task(name) is None:
            app.task_from_fun(function, name=name, bind=True, warn=False, **options)


# Many calls in one message


def _map(self: Any, task: Any, it: Sequence[Any]) -> Any:
    return _each(signature(task, app=self.app).type, [((item,), {}) for item in it])


def _starmap(self: Any, task: Any, it: Sequence[Any]) -> Any:
    return _each(signature(task, app=self.app).type, [(tuple(item), {}) for item in it])


def _each(task: Callable[..., Any], calls: Sequence[Any]) -> Any:
    values = [task(*args, **kwargs) for args, kwargs in calls[:1]]
    if values and isinstance(values[0], Coroutine):
        return _await_each(task, calls, values[0])
    return values + [task(*args, **kwargs) for args, kwargs in calls[1:]]


async def _await_each(task: Callable[..., Any], calls: Sequence[Any], first: Coroutine[Any, Any, Any]) -> list[Any]:
    return [await first, *[await task(*args, **kwargs) for args, kwargs in calls[1:]]]


def _chunks(self: Any, task: Any, it: Sequence[Any], n: int) -> Any:
    return chunks.apply_chunks(maybe_signature(task, self.app), it, n, app=self.app)


# Shapes


def _group(
    self: Any, tasks: Sequence[Any], result: Any, group_id: str, partial_args: Sequence[Any], add_to_parent: bool = True
) -> Any:
    found = result_from_tuple(result, self.app)
    for task in tasks:
        call = maybe_signature(task, self.app).clone(partial_args)
        call.apply_async(group_id=group_id, add_to_parent=False)
    request = publish.worker_request()
    if add_to_parent and request is not None:
        publish.trail(request, found)
    return found


def _chord(
    self: Any,
    header: Any,
    body: Any,
    partial_args: Sequence[Any] = (),
    interval: float | None = None,
    countdown: float | None = None,
    max_retries: int | None = None,
    eager: bool = False,
    **options: Any,
) -> Any:
    return chord(header, body, app=self.app).apply_async(partial_args, **options)


def _chain(self: Any, *args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError("a chain is sent as its first step, and never as a task")


def _accumulate(self: Any, *args: Any, index: int | None = None, **kwargs: Any) -> Any:
    return args if index is None else args[index]


def _backend_cleanup(self: Any) -> None:
    self.app.backend.cleanup()


# A chord of a peer whose result store can't count


def _chord_unlock(
    self: Any,
    group_id: str,
    callback: Any,
    interval: float | None = None,
    max_retries: int | None = None,
    result: Sequence[Any] = (),
    **more: Any,
) -> None:
    app = self.app
    body = maybe_signature(callback, app)
    members = app.GroupResult(group_id, [result_from_tuple(member, app) for member in result])
    options = {
        "countdown": app.conf["result_chord_retry_interval"] if interval is None else interval,
        "max_retries": max_retries, "exchange_type": more.get("_chord_unlock_exchange_type"),
    }  # fmt: skip
    try:
        if not _have_ended(self, members, options):
            _check_patience(self, options)
            raise self.retry(**options)
        with allow_join_result():
            values = members.get(timeout=app.conf["result_chord_join_timeout"])
    except Retry:
        raise
    except Exception as error:  # whatever a member raised, or a store: the body fails with it
        fail(app, body, _as_chord_error(members, error))
        return
    try:
        body.apply_async((values,))
    except OperationalError as error:
        raise self.retry(exc=error, **options) from error


def _have_ended(task: Any, members: Any, options: Mapping[str, Any]) -> bool:
    try:
        return bool(members.ready())
    except OperationalError as error:
        raise task.retry(exc=error, **options) from error


def _check_patience(task: Any, options: Mapping[str, Any]) -> None:
    kept = task.app.backend.expires()
    if options["max_retries"] is None and kept and options["countdown"] * task.request.retries > kept:
        raise ChordError(f"members have not ended within {kept:g} s, after which their results are forgotten")


def _as_chord_error(members: Any, cause: Exception) -> ChordError:
    error = ChordError(repr(cause))
    for member in members._tree():
        if member._found is not None and member._found.status in states.PROPAGATE_STATES:
            error = ChordError(f"Dependency {member.id} raised {cause!r}")
            break
    error.__cause__ = cause
    return error


def fail(app: Any, body: Any, error: BaseException) -> None:
    """Store an error as the result of every task of a body that will not be sent, and let its error links follow."""
    for found in tree.singles(body):
        options = found["options"] or {}
        task_id = options.get("task_id")
        if task_id is None:
            continue
        app.backend.store_result(task_id, error, states.FAILURE)
        for link in publish.many(options.get("link_error")):
            _follow(app, task_id, found, link, error)


def _follow(app: Any, task_id: str, failed: Mapping[str, Any], link: Any, error: BaseException) -> None:
    errback = maybe_signature(link, app)
    known = app.tasks.get(errback.task)
    if known is not None and takes_failure(known, errback):
        request = Context(id=task_id, task=failed["task"], args=failed["args"], kwargs=failed["kwargs"])
        errback(*(() if errback.immutable else (request, error, None)))
    else:
        errback.apply_async((task_id,))


_TASKS: Sequence[tuple[str, Callable[..., Any], Mapping[str, Any]]] = (
    ("celery.accumulate", _accumulate, {}),
    ("celery.backend_cleanup", _backend_cleanup, {}),
    ("celery.chain", _chain, {}),
    ("celery.chord", _chord, {"ignore_result": False}),
    ("celery.chord_unlock", _chord_unlock, {"max_retries": None, "ignore_result": True}),
    ("celery.chunks", _chunks, {}),
    ("celery.group", _group, {}),
    ("celery.map", _map, {}),
    ("celery.starmap", _starmap, {}),
)
