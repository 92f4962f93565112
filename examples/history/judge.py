"""What the checker says of a task that started twice, though the worker that ran it first was not killed, and never ended."""

from celeriac.testing.history import Event, What, judge

events = [Event(What.PUBLISHED, "a"), Event(What.STARTED, "a", "w1"), Event(What.STARTED, "a", "w2")]
print(*judge(events).reasons, sep="\n")
