"""The app, its tasks and results, and the wiring of adapters."""
