"""The entry of a gevent or eventlet child: patches first, imports afterwards. `python -m celeriac.pools.greenchild
<kind> <fd>`."""

import importlib
import sys


def main() -> None:
    """Patch, then live as any child does."""
    kind = sys.argv.pop(1)
    try:
        if kind == "gevent":
            importlib.import_module("gevent.monkey").patch_all()
        else:
            importlib.import_module("eventlet").monkey_patch()
            # the line to the parent is read by whoever waits: a greenlet and an asyncio loop at the same time
            importlib.import_module("eventlet.debug").hub_prevent_multiple_readers(False)
    except ImportError as error:
        sys.stderr.write(f"the pool {kind!r} needs {kind}: pip install 'celeriac[{kind}]' ({error})\n")
        sys.exit(1)
    from celeriac.pools.child import main as live

    live()


if __name__ == "__main__":
    main()
