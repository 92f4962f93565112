"""Bytes and their meaning: Celery's wire format, exactly. Pure: no clock, no socket; bad input raises
`celeriac.errors` only."""
