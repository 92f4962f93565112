"""Measurements beside Celery and dramatiq on the same machine. `python -m benchmarks` runs all of them."""
