"""When a worker may declare others dead. Pure."""

from __future__ import annotations


class LeaseWatch:
    """Holds a worker back from recovering others after it was itself away.

    When a machine sleeps, stalls, or its clock jumps, all leases seem to have ended at once. Whoever sees that its own
    renewals had a gap gives the others the time of one lease to renew theirs.
    """

    def __init__(self, lease: float, now: float) -> None:
        self._lease = lease
        self._renewed = now
        self._quiet_until = now

    def renewed(self, now: float) -> None:
        """The own lease was renewed."""
        if not 0 <= now - self._renewed <= self._lease / 2:
            self._quiet_until = now + self._lease
        self._renewed = now

    def may_recover(self, now: float) -> bool:
        """May others be declared dead?"""
        return now >= self._quiet_until and 0 <= now - self._renewed <= self._lease / 2
