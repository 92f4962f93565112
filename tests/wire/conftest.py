"""The room's property tests: no deadline for one example, because a busy machine would fail them."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("wire", deadline=None)
settings.load_profile("wire")
