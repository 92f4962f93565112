"""Which celeriac this is."""

__version__ = "0.1.0"

VERSION = tuple(int(part) for part in __version__.split("."))
