"""Tasks that are sent when Django's transaction has committed, under Celery's names.

They wait in memory for the commit: a process that dies right after it loses them. `app.transaction` does not.
"""

from __future__ import annotations

import functools
from typing import Any

from celeriac.app.task import Task
from celeriac.wire.ids import new_id


class DjangoTask(Task[..., Any]):
    """`Celeriac(task_cls="celeriac.contrib.django.task:DjangoTask")`."""

    abstract = True

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> Any:
        """`delay` once the current transaction of the default database has committed; at once where there is none.
        Returns the handle of the result that will be; nothing is sent after a rollback."""
        return self.apply_async_on_commit(args, kwargs)

    def apply_async_on_commit(
        self, args: Any = None, kwargs: Any = None, *, using: str | None = None, **options: Any
    ) -> Any:
        """`apply_async` once the current transaction of the database `using` has committed. See `delay_on_commit`."""
        from django.db import transaction  # type: ignore[import-untyped,unused-ignore]

        task_id = options.pop("task_id", None) or new_id()
        send = functools.partial(self.apply_async, args, kwargs, task_id=task_id, **options)
        transaction.on_commit(send, using=using)
        return self.AsyncResult(task_id)
