"""Task messages: Celery's protocol 2, protocol 1 and the hybrid of both, read and written."""

from celeriac.wire.ids import follow_up_id, new_id
from celeriac.wire.reading import read_head, unpack
from celeriac.wire.repr import safe_repr
from celeriac.wire.shape import RUN, Head, TaskMessage, run_name
from celeriac.wire.writing import Template, pack

__all__ = [
    "RUN", "Head", "TaskMessage", "Template", "follow_up_id", "new_id", "pack", "read_head", "run_name", "safe_repr",
    "unpack",
]  # fmt: skip
