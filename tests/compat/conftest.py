"""The fixtures of the app's tests."""

from tests.app.conftest import app, broker

__all__ = ["app", "broker"]
