"""A process that must not outlive its parent."""

from __future__ import annotations

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent (the thread that started it) ends. `parent` is the process id
    that the parent ought to have: when it is gone already, this process ends now. Linux only; elsewhere the end of a
    pipe has to do."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if parent and os.getppid() != parent:
        os._exit(1)


def leave_signals_to_parent() -> None:
    """Ignore what a terminal or a supervisor sends to the whole process group: the parent decides. By a handler, for an
    ignored signal would stay ignored in programs that tasks start."""
    ours = os.getpid()

    def ignore(signum: int, frame: object) -> None:
        if os.getpid() != ours:
            # a process that a task has forked: there the signal means what it says
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    for name in ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1"):
        number = getattr(signal, name, None)
        if number is not None:
            signal.signal(number, ignore)


def default_signals() -> None:
    """Give back to every signal the meaning that the system gives it: what was imported may have changed it."""
    kept = {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}
    for number in signal.valid_signals() - kept:
        handler = signal.getsignal(number)
        if callable(handler) or (handler == signal.SIG_IGN and number != getattr(signal, "SIGXFSZ", None)):
            signal.signal(number, signal.SIG_DFL)
