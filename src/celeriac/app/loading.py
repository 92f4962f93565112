"""Importing the modules that hold tasks: `include`, `imports`, `autodiscover_tasks`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

from celeriac import telemetry

Packages = Iterable[str] | Callable[[], Iterable[str]] | None


class Discovery(NamedTuple):
    """One call of `autodiscover_tasks`."""

    packages: Packages
    related_name: str | None


class Loader:
    """`app.loader`: what of Celery's loaders is still there to be called."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.discoveries: list[Discovery] = []

    def import_default_modules(self) -> list[ModuleType]:
        """Import what `imports`, `include` and `autodiscover_tasks` name, once each."""
        telemetry.import_modules.send(self.app)
        conf = self.app.conf
        names = [*(_words(conf["imports"])), *(_words(conf["include"]))]
        modules = [import_module(name) for name in dict.fromkeys(names)]
        for discovery in self.discoveries:
            modules += discover(discovery)
        return modules

    def import_task_module(self, module: str) -> ModuleType:
        """Import a module."""
        return import_module(module)

    import_module = import_task_module


def discover(discovery: Discovery) -> list[ModuleType]:
    """Import the related module of each package; one that is not there is passed over."""
    packages = discovery.packages
    if callable(packages):
        packages = packages()
    elif packages is None:
        packages = _django_apps()
    if isinstance(packages, str):
        packages = [packages]
    found = [related(package, discovery.related_name) for package in packages]
    return [module for module in found if module is not None]


def related(package: str, name: str | None) -> ModuleType | None:
    """Import `package.name`, or the package itself where there is no name. None when it has no such module; what the
    module itself fails to import is raised."""
    try:
        module = import_module(package)
    except ModuleNotFoundError as error:
        parent = package.rpartition(".")[0]
        if not parent or error.name != package:
            raise
        package, module = parent, import_module(parent)  # `proj.apps.Config`, as Django may name an app
    if not name:
        return module
    if not hasattr(module, "__path__"):
        parent = package.rpartition(".")[0]
        if not parent:
            return None
        package = parent
    full = f"{package}.{name}"
    return import_module(full) if find_spec(full) is not None else None


def _words(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _django_apps() -> list[str]:
    """The apps that Django has installed; none where there is no Django."""
    if not os.environ.get("DJANGO_SETTINGS_MODULE"):
        return []
    from django.apps import apps  # type: ignore[import-not-found,import-untyped,unused-ignore]

    return [config.name for config in apps.get_app_configs()]
