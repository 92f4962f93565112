"""What settings there are: names, types, defaults. Where their values come from is `app.config`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from celeriac.errors import ImproperlyConfigured
from celeriac.model.settings_effects import NEEDLESS, UNBUILT
from celeriac.model.settings_table import CELERY, OWN, UNDECLARED

# Texts, not compiled patterns: who shows no settings does not pay for them.
_SECRET = r"(?i)API|TOKEN|KEY|SECRET|PASS|PROFANITIES_LIST|SIGNATURE|DATABASE|BEAT_DBURI"
_HARMLESS = frozenset({
    "database_create_tables_at_setup", "database_short_lived_sessions", "database_table_names",
    "database_table_schemas", "routing_key", "task_default_routing_key",
})  # fmt: skip
_PASSWORD = r"(?<=://)([^\s/@:;]*):(?:(?![;,][\w+.-]+://)\S)*@"
"""The login of a URL. A password may hold anything, so it reaches to the last @ before the next URL of a list."""
_STARS = "********"


class Setting(NamedTuple):
    """One setting."""

    key: str
    kind: str
    """What a text is cast to: bool, int, float, string, bytes, list, tuple, dict or any."""
    default: Any
    """The default of profile `celery`."""
    old: str
    """The name in capitals of Celery 3; empty for celeriac's own settings."""
    doc: str
    """One line of prose, with the unit."""
    own: bool = False
    """Celeriac's, unknown to Celery."""

    @property
    def effect(self) -> str:
        """Why it has none; empty: it has."""
        if self.key in NEEDLESS:
            return f"no effect: {NEEDLESS[self.key]}"
        return f"not built yet: {UNBUILT[self.key]}" if self.key in UNBUILT else ""


class Difference(NamedTuple):
    """A default that is not Celery's."""

    key: str
    celery: Any
    ours: Any
    reason: str
    back: str
    """How to get Celery's."""


DIFFERENCES = (
    Difference(
        "task_acks_late", False, True,
        "A message is acknowledged when its task has ended, so a crash repeats the task instead of losing it.",
        "task_acks_late = False, or acks_late=False at tasks that must not run twice",
    ),
    Difference(
        "task_reject_on_worker_lost", None, True,
        "When the process that ran a task is lost, the message goes back to its queue, three times at most.",
        "task_reject_on_worker_lost = False",
    ),
    Difference(
        "worker_prefetch_multiplier", 4, None,
        "A worker holds ahead what keeps it busy for about a millisecond, so no short task waits behind a long one.",
        "worker_prefetch_multiplier = 4",
    ),
    Difference(
        "worker_proc_alive_timeout", 4.0, 60.0,
        "A child that has much to import on a busy machine is slow, not broken.",
        "worker_proc_alive_timeout = 4",
    ),
    Difference(
        "worker_hijack_root_logger", True, False,
        "A worker that finds handlers at the root logger leaves the logging that you have set up as it is.",
        "worker_hijack_root_logger = True",
    ),
    Difference(
        "broker_url", "amqp://", "sqlite://",
        "Without a URL a file in the project is the broker: nothing to install, nothing to start.",
        'broker_url = "amqp://"',
    ),
    Difference(
        "broker_heartbeat", 120, 8,
        "A RabbitMQ that is cut off is noticed after 16 seconds at most, not after minutes.",
        "broker_heartbeat = 120",
    ),
    Difference(
        "result_backend", "disabled://", "sqlite://",
        "Where neither a broker nor a result backend is named, results are kept in the same file as the messages.",
        'result_backend = "disabled://"',
    ),
)  # fmt: skip
"""Where profile `safe` departs from Celery; profile `celery` takes all of it back. The two URLs are chosen where the
app is wired, so that a setting which is not set still reads as None."""

SETTINGS: dict[str, Setting] = {
    **{row[0]: Setting(row[0], row[1], row[2], row[0].upper() if row[3] == "=" else row[3], row[4]) for row in CELERY},
    **{row[0]: Setting(row[0], row[1], row[2], row[3], row[4], own=True) for row in OWN},
}
"""Every setting by its key."""

OLD_NAMES: dict[str, str] = {setting.old: key for key, setting in SETTINGS.items() if setting.old}
"""Name in capitals -> key."""

_DEFAULTS: dict[str, dict[str, Any]] = {"celery": {key: setting.default for key, setting in SETTINGS.items()}}
_DEFAULTS["safe"] = {
    **_DEFAULTS["celery"],
    **{row.key: row.ours for row in DIFFERENCES if row.key not in ("broker_url", "result_backend")},
}
_DEFAULTS["celery"]["profile"] = "celery"


def without_effect(conf: Mapping[str, Any]) -> str:
    """Settings that are not at their defaults and switch what is not built yet, to read; empty: there are none."""
    found: dict[str, list[str]] = {}
    for key, what in UNBUILT.items():
        if conf[key] != SETTINGS[key].default:
            found.setdefault(what, []).append(key)
    return "; ".join(f"{', '.join(keys)} ({what})" for what, keys in found.items())


def defaults(profile: str = "safe") -> Mapping[str, Any]:
    """The defaults of a profile. Shared: copy a dict before changing it. Raises ImproperlyConfigured."""
    try:
        return _DEFAULTS[profile]
    except (KeyError, TypeError):
        raise ImproperlyConfigured(f"profile is {profile!r}: use 'safe' or 'celery'") from None


def known(key: str) -> bool:
    """True for a key of the table, and for the few that have no default."""
    return key in SETTINGS or key in UNDECLARED


def canonical(name: str) -> str:
    """The key that a name stands for: itself, an old name, the key in capitals. Else the name."""
    if name in SETTINGS:
        return name
    if name in OLD_NAMES:
        return OLD_NAMES[name]
    lower = name.lower()
    return lower if lower in SETTINGS or lower in UNDECLARED else name


def nearest(name: str) -> str | None:
    """The known key that a misspelled name is most likely meant to be, or None."""
    from difflib import get_close_matches  # only for a mistake, and it is slow to import

    lower = name.lower()
    found = get_close_matches(lower, SETTINGS, 1, 0.8)
    if not found:
        old = get_close_matches(name.upper(), OLD_NAMES, 1, 0.85)
        found = [OLD_NAMES[old[0]]] if old else []
    return found[0] if found else None


def find(name: str, namespace: str = "") -> Setting:
    """The setting that a short name means: `always_eager` is task_always_eager. `namespace` is tried first. Raises
    KeyError."""
    short = name.lower()
    if namespace and f"{namespace.lower()}_{short}" in SETTINGS:
        return SETTINGS[f"{namespace.lower()}_{short}"]
    key = canonical(name)
    if key in SETTINGS:
        return SETTINGS[key]
    for setting in SETTINGS.values():
        if setting.key.partition("_")[2] == short:
            return setting
    raise KeyError(name)


def cast(kind: str, text: str) -> Any:
    """The value that a text of the command line means. Lists and dicts are JSON; a list may be words with commas.
    `any` is JSON where it can be read so, else the text. Raises ValueError or TypeError with what would be right."""
    match kind:
        case "string" | "str":
            return text
        case "bool":
            word = text.strip().lower()
            if word in ("true", "yes", "on", "1"):
                return True
            if word in ("false", "no", "off", "0"):
                return False
            raise TypeError(f"{text!r} is no bool: use true or false")
        case "int":
            return int(text)
        case "float":
            return float(text)
        case "bytes":
            return text.encode()
        case "list" | "tuple":
            value = _json(text) if text.lstrip().startswith("[") else [word.strip() for word in text.split(",") if word]
            return tuple(value) if kind == "tuple" else value
        case "dict":
            value = _json(text)
            if not isinstance(value, dict):
                raise ValueError(f"{text!r} is no dict: write it as JSON")
            return value
        case "any":
            try:
                return _json(text)
            except ValueError:
                return text
    raise TypeError(f"no type {kind!r}: use bool, int, float, string, bytes, list, tuple, dict or any")


def _json(text: str) -> Any:
    import json

    return json.loads(text)


def seconds(value: float | timedelta | None) -> float | None:
    """A duration of the settings in seconds. None stays None."""
    if value is None:
        return None
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


def parse_words(words: Iterable[str], namespace: str = "celery") -> dict[str, Any]:
    """The settings that `key=value` words say. `worker.concurrency=4` is worker_concurrency; a leading `.` or `_`
    stands for `namespace`; `(type)value` casts to a type, else to the setting's own. Raises ImproperlyConfigured."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ImproperlyConfigured(f"{word!r} is no setting: write key=value")
        name = name.strip()
        if name[:1] in (".", "_"):
            name = f"{namespace}_{name[1:]}"
        key = canonical(name.replace(".", "_"))
        found[key] = cast_setting(key, text)
    return found


def cast_setting(key: str, text: str) -> Any:
    """The value that a text means for a setting: its own type, or the one that `(type)` in front of it names. Raises
    ImproperlyConfigured."""
    marked = re.match(r"\((\w+)\)", text)
    try:
        if marked:
            return cast(marked.group(1), text[marked.end() :])
        if key in SETTINGS:
            return cast(SETTINGS[key].kind, text)
    except (TypeError, ValueError) as exc:
        raise ImproperlyConfigured(f"{key}={text}: {exc}") from None
    if not known(key):
        close = nearest(key)
        hint = f"did you mean {close}?" if close else f"write {key}=(type)value for a setting of your own"
        raise ImproperlyConfigured(f"there is no setting {key!r}: {hint}")
    return text


def censor(key: str, value: Any) -> Any:
    """A value as it may be shown: secrets are stars, passwords in URLs too, also inside lists and dicts."""
    if re.search(_SECRET, key) and key not in _HARMLESS and value not in (None, "", b""):
        return _STARS
    if isinstance(value, str):
        return re.sub(_PASSWORD, rf"\1:{_STARS}@", value)
    if isinstance(value, Mapping):
        # Names inside may be those of tasks and queues: only a text can be a secret there.
        return {
            name: censor(str(name) if isinstance(inner, str | bytes) else "", inner) for name, inner in value.items()
        }
    if type(value) is list:
        return [censor("", inner) for inner in value]
    if type(value) is tuple:
        return tuple(censor("", inner) for inner in value)
    return value
