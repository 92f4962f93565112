"""Task messages: Celery's protocol 2, protocol 1 and the hybrid of both, read and written."""

from celeriac.wire.ids import follow_up_id, new_id
from celeriac.wire.reading import read_head, unpack
from celeriac.wire.repr import safe_repr
from celeriac.wire.shape import Head, TaskMessage
from celeriac.wire.writing import Template, pack

__all__ = ["Head", "TaskMessage", "Template", "follow_up_id", "new_id", "pack", "read_head", "safe_repr", "unpack"]
