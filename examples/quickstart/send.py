"""Sends a task and waits for its result."""

from tasks import add

result = add.delay(2, 3)
print(result.get(timeout=10))
