"""What a run adds to the chord that it is a member of, under ids that follow from the run: when it is repeated after a
crash, it adds what stands there already."""

from __future__ import annotations

from typing import Any

from celeriac.app.canvas import Signature
from celeriac.canvas import tree
from celeriac.runtime.context import Context
from celeriac.wire.task import TaskMessage, follow_up_id, run_name


def freeze(app: Any, request: Context, message: TaskMessage, sig: Signature[Any]) -> list[str]:
    """Make the signature a member of the chord of a run, that of `message`. Ids that stand in it are kept, others name
    the run, and the how manieth they are in it. Returns `task id:index` of those that the chord has to wait for."""

    def name() -> str:
        request.added += 1
        return follow_up_id(run_name(message), message.retries, "add", request.added - 1)

    index = request.group_index
    sig.set(group_id=request.group, group_index=index, chord=request.chord, root_id=request.root_id)
    more = {} if app.thread_oid is None else {"reply_to": app.thread_oid}
    form, node = tree.Freezer(name, more).freeze(sig)
    frozen = Signature.from_dict(form, app)
    sig["kwargs"], sig["options"] = frozen["kwargs"], frozen["options"]
    return [f"{leaf}:{'+inf' if index is None else index}" for leaf in node.leaves()]
