"""Signatures as users write them: calls that are not made yet, and the shapes that they are put together in.

A signature is a dict, because that is what stands on the wire: task, args, kwargs, options, subtask_type, immutable.
What messages a shape becomes is decided in `celeriac.canvas`, which the worker asks as well.
"""

from celeriac.app.canvas.chains import chain
from celeriac.app.canvas.chords import chord
from celeriac.app.canvas.groups import group
from celeriac.app.canvas.maps import chunks, xmap, xstarmap
from celeriac.app.canvas.signatures import Signature, maybe_signature, maybe_subtask, signature, subtask
from celeriac.app.canvas.stamping import StampingVisitor

__all__ = [
    "Signature", "StampingVisitor", "chain", "chord", "chunks", "group", "maybe_signature", "maybe_subtask",
    "signature", "subtask", "xmap", "xstarmap",
]  # fmt: skip
