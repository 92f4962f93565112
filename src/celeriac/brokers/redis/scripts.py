"""The scripts of the broker, by what they do. Their files say what they take and give."""

from __future__ import annotations

from celeriac.drivers.redis.script import Script

_HERE = "celeriac.brokers"
_PLACES = (_HERE, "lua/places.lua")
_LEASE = (_HERE, "lua/lease.lua")
_SUCCESS = ("celeriac.drivers.redis", "lua/success.lua")

CYCLE = Script(_PLACES, _SUCCESS, ("celeriac.drivers.redis", "lua/chord.lua"), (_HERE, "lua/cycle.lua"))
GRAB = Script((_HERE, "lua/grab.lua"))
PROBE = Script((_HERE, "lua/probe.lua"))
PEEK = Script((_HERE, "lua/peek.lua"))
RENEW = Script(_LEASE, (_HERE, "lua/renew.lua"))
DEAD_WORKERS = Script(_LEASE, (_HERE, "lua/dead_workers.lua"))
GIVE_BACK = Script(_PLACES, _LEASE, (_HERE, "lua/give_back.lua"))
END_EPOCH = Script(_PLACES, _LEASE, (_HERE, "lua/end_epoch.lua"))
SCHEDULE = Script(_PLACES, (_HERE, "lua/schedule.lua"))
ONCE = Script(_PLACES, (_HERE, "lua/once.lua"))
CANCEL = Script((_HERE, "lua/cancel.lua"))
CANCELLED = Script((_HERE, "lua/cancelled.lua"))
RELEASE = Script(_PLACES, (_HERE, "lua/release.lua"))
RESTORE = Script(_PLACES, (_HERE, "lua/restore.lua"))
SEEK = Script(_PLACES, (_HERE, "lua/seek.lua"))
UNLOCK = Script((_HERE, "lua/unlock.lua"))
RESTORE_UNACKED = Script((_HERE, "lua/restore_unacked.lua"))
