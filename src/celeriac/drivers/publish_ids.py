"""Which publish ids can come a second time."""

from __future__ import annotations

KNOWN_SECONDS = 3600.0
"""How long a publish id that can come again stays known to brokers that drop a second one."""
ONCE_SECONDS = 86_400.0
"""How long the publish id of an `Envelope.once` stays known to every broker."""


def can_come_again(publish_id: str) -> bool:
    """False for a random id (uuid4): it names one call that either succeeded or raised. A derived id (uuid5) names a
    follow-up, which a second run of the same message publishes again under the same name."""
    return publish_id[14:15] != "4"
