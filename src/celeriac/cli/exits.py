"""What the process exits with: Celery's numbers, which scripts rely on."""

OK = 0
FAILURE = 1
"""The thing asked for failed, or was called off."""
USAGE = 2
"""A wrong word on the command line, a wrong URL, an app that can't be found."""
UNAVAILABLE = 69
"""No broker, or nobody who answers."""
CANNOT_CREATE = 73
"""A pidfile that belongs to somebody else."""
