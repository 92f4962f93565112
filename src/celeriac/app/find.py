"""How `-A` finds the app: Celery's rules, and `pkg.tasks` imported when nothing imports it.

Whatever is wrong ends in ImproperlyConfigured with one clear line; an error raised *by* the user's code while it is
imported keeps its own traceback, because that is where the fault is.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

from celeriac.app.app import Celeriac
from celeriac.errors import ImproperlyConfigured


def find_app(name: str, *, workdir: str | None = None) -> Celeriac:
    """The app that `-A name` means; see `find`."""
    app: Celeriac = find(name, Celeriac, workdir=workdir)
    return app


def find(name: str, kind: type[Any], *, workdir: str | None = None) -> Any:
    """The app that `name` means: `module`, `module:attribute`, `module.attribute` or `package`.

    Order: the named attribute; `module.app`; `module.celery`; `package.celery` (a module of that name);
    the first instance of `kind` in the module. A path such as `src/proj.py` is understood too."""
    name = name.strip()
    if not name:
        raise ImproperlyConfigured("no app is named: use -A module or -A module:attribute")
    here = os.path.abspath(workdir or os.getcwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    spelled = name
    if name.endswith(".py") or os.sep in name:
        name = name.removesuffix(".py").strip("./").replace(os.sep, ".")
    module_name, colon, attribute = name.partition(":")
    if colon:
        module = _import(module_name, spelled)
        found = _walk(module, attribute)
        if found is _MISSING:
            apps = ", ".join(f"{module_name}:{key}" for key in _instances(module, kind))
            hint = f"; it has {apps}" if apps else "; it has no app at all"
            raise ImproperlyConfigured(f"-A {spelled}: module {module_name!r} has no attribute {attribute!r}{hint}")
        if isinstance(found, ModuleType):
            return _in_module(found, kind, spelled)
        return _checked(found, kind, spelled)
    if not _exists(module_name) and "." in module_name:
        parent, _, attribute = module_name.rpartition(".")
        if _exists(parent):
            module = _import(parent, spelled)
            found = _walk(module, attribute)
            if found is not _MISSING:
                return _checked(found, kind, spelled)
    return _in_module(_import(module_name, spelled), kind, spelled)


class _Missing:
    pass


_MISSING = _Missing()


def _in_module(module: ModuleType, kind: type[Any], spelled: str) -> Any:
    for attribute in ("app", "celery", "celeriac"):
        found = getattr(module, attribute, None)
        if isinstance(found, kind):
            return found
    if hasattr(module, "__path__"):
        for attribute in ("celery", "celeriac"):
            child = f"{module.__name__}.{attribute}"
            if _exists(child):
                return _in_module(_import(child, spelled), kind, spelled)
    for key in _instances(module, kind):
        return getattr(module, key)
    raise ImproperlyConfigured(
        f"-A {spelled}: module {module.__name__!r} has no app; make one with `app = Celeriac({module.__name__!r})`,"
        " or name it with -A module:attribute"
    )


def _instances(module: ModuleType, kind: type[Any]) -> list[str]:
    return [key for key, value in list(vars(module).items()) if isinstance(value, kind)]


def _walk(module: Any, path: str) -> Any:
    found = module
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            child = f"{getattr(found, '__name__', '')}.{part}"
            if isinstance(found, ModuleType) and _exists(child):
                found = importlib.import_module(child)
            else:
                return _MISSING
    return found


def _checked(found: Any, kind: type[Any], spelled: str) -> Any:
    if isinstance(found, kind):
        return found
    raise ImproperlyConfigured(f"-A {spelled}: that is a {type(found).__name__}, not an app")


def _exists(module_name: str) -> bool:
    """True if the module can be found. Imports its parents, as any import would."""
    if module_name in sys.modules:
        return True
    try:
        return importlib.util.find_spec(module_name) is not None
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            return False
        raise
    except ValueError:
        return False
    except ImportError:
        return False


def _import(module_name: str, spelled: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing and (module_name == missing or module_name.startswith(missing + ".")):
            raise ImproperlyConfigured(
                f"-A {spelled}: there is no module {missing!r} in {os.getcwd()} or on the Python path"
            ) from None
        raise
    except (TypeError, ValueError) as error:
        if not module_name or module_name.startswith("."):
            raise ImproperlyConfigured(f"-A {spelled}: {module_name!r} is not a module name ({error})") from None
        raise


def import_tasks(app: Any) -> str | None:
    """Import `<package>.tasks` of the package that the app stands in, when nothing has imported it: the file that
    people write and forget to name in `include`. Returns the module's name, or None when there is none."""
    home = getattr(app, "home", None)
    if not home or home == "__main__":
        return None
    module = sys.modules.get(home)
    package = home if hasattr(module, "__path__") else home.rpartition(".")[0]
    if not package:
        return None
    name = f"{package}.tasks"
    if name in sys.modules or not _exists(name):
        return None
    importlib.import_module(name)
    return name
