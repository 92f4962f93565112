"""What the checker says of a task that two workers started, though none was killed, and that never ended."""

from celeriac.testing.history import Event, What, judge

events = [Event(What.PUBLISHED, "a"), Event(What.STARTED, "a", "w1"), Event(What.STARTED, "a", "w2")]
print(*judge(events).reasons, sep="\n")
