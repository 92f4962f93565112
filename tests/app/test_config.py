"""app.conf: where values come from, in which order, and by which names."""

from __future__ import annotations

import os
import re
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from celeriac.app.config import Settings, cast_setting, censor, load_source, parse_words, symbol
from celeriac.errors import ImproperlyConfigured, UnknownSettingWarning
from celeriac.model.settings import SETTINGS, defaults


def settings(
    source: Any = None, *, namespace: str | None = None, env: dict[str, str] | None = None, **changes: Any
) -> Settings:
    conf = Settings(changes, environ=env or {})
    if source is not None:
        conf.read_from(source, namespace=namespace)
    return conf


@pytest.fixture
def proj(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with modules of configuration, found because it is the current one."""
    (tmp_path / "confpkg").mkdir()
    (tmp_path / "confpkg/__init__.py").write_text("")
    (tmp_path / "confpkg/celeryconfig.py").write_text(
        "import os\nfrom datetime import timedelta\n"
        "task_serializer = 'module'\nFoo_x = 3\nmy_own = 4\n"
        "class Config:\n    task_serializer = 'class'\n    class Inner:\n        task_serializer = 'inner'\n"
        "values = {'task_serializer': 'dict'}\n"
    )
    (tmp_path / "confpkg/broken.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("confpkg")]:
        del sys.modules[name]


class TestOrder:
    """Environment, changes, source, defaults."""

    def test_defaults(self) -> None:
        """Without anything every setting reads as its default."""
        conf = settings()
        assert dict(conf) == {
            **defaults("safe"),
            "task_default_exchange": "celery",
            "task_default_routing_key": "celery",
        }

    def test_changes_beat_the_source(self) -> None:
        """What is set through the app wins, be it set before or after the source is read."""
        conf = settings({"task_serializer": "source", "task_protocol": 1, "enable_utc": False}, task_serializer="app")
        assert (conf.task_serializer, conf.task_protocol) == ("app", 1)
        conf.task_protocol = 2
        conf.update(enable_utc=True)
        assert (conf.task_protocol, conf.enable_utc) == (2, True)

    def test_the_environment_beats_all(self) -> None:
        """Four URLs can be given in the environment."""
        env = {"CELERY_BROKER_URL": "redis://env", "CELERY_RESULT_BACKEND": "redis://env/1"}
        conf = settings({"broker_url": "redis://source"}, env=env, result_backend="redis://app")
        assert (conf.broker_url, conf["BROKER_URL"], conf.get("broker_url")) == ("redis://env",) * 3
        assert (conf.broker_read_url, conf.broker_write_url, conf.result_backend) == (
            "redis://env", "redis://env", "redis://env/1",
        )  # fmt: skip
        env["CELERY_BROKER_READ_URL"] = "redis://read"
        env["CELERY_BROKER_WRITE_URL"] = ""
        assert (conf.broker_read_url, conf.broker_write_url) == ("redis://read", "redis://env")

    def test_fallbacks(self) -> None:
        """Read and write URL, exchange and routing key are filled in from others."""
        conf = settings({"broker_url": "redis://b", "task_default_queue": "q", "TIME_ZONE": "Asia/Tokyo"})
        assert (conf.broker_read_url, conf.broker_write_url) == ("redis://b", "redis://b")
        assert (conf.task_default_exchange, conf.task_default_routing_key) == ("q", "q")
        assert conf.timezone == "Asia/Tokyo"
        conf.update(broker_read_url="redis://r", task_default_exchange="e", timezone="UTC")
        assert (conf.broker_read_url, conf.task_default_exchange, conf.timezone) == ("redis://r", "e", "UTC")

    def test_added_defaults(self) -> None:
        """They beat the built-in defaults and nothing else; those added last come first; a function is called late."""
        called = []
        conf = settings({"task_protocol": 1})
        conf.add_defaults({"task_acks_late": 1, "aa": 1, "task_protocol": 7})
        conf.add_defaults(lambda: called.append(1) or {"task_acks_late": 2, "aa": 2})  # type: ignore[func-returns-value]
        assert not called
        assert (conf.task_acks_late, conf.aa, conf.task_protocol) == (2, 2, 1)
        assert conf.origin("aa") == "default"

    def test_profile(self) -> None:
        """profile = celery gives Celery's defaults, from the app, the source or an added default."""
        assert settings().task_acks_late is True
        for conf in (
            settings(profile="celery"),
            settings({"profile": "celery"}),
            settings({"X_PROFILE": "celery"}, namespace="X"),
        ):
            assert (conf.task_acks_late, conf.task_reject_on_worker_lost, conf.worker_prefetch_multiplier) == (
                False,
                None,
                4,
            )
            assert conf.profile == "celery"
        conf = settings()
        conf.add_defaults({"profile": "celery"})
        assert conf.task_acks_late is False
        conf.profile = "safe"
        assert conf.task_acks_late is True
        del conf.profile
        assert conf.task_acks_late is False

    def test_a_wrong_profile_is_told(self) -> None:
        """At once where it is set, at the first look where it stands in the source."""
        with pytest.raises(ImproperlyConfigured, match="profile is 'save'"):
            settings(profile="save")
        conf = settings({"profile": "save"})
        with pytest.raises(ImproperlyConfigured, match="profile is 'save'"):
            conf.finalize()

    @pytest.mark.parametrize(
        ("parts", "url"),
        [
            ({"broker_host": "h"}, "amqp://h/"),
            ({"broker_transport": "memory"}, "memory://"),
            (
                {"broker_host": "h", "broker_user": "u", "broker_password": "p@", "broker_port": 3, "broker_vhost": "/",
                 "broker_transport": "redis"},
                "redis://u:p%40@h:3/%2F",
            ),
            ({"broker_vhost": "v"}, "amqp://localhost/v"),
            ({"broker_host": "redis://h/1"}, "redis://h/1"),
            ({"broker_host": "h", "broker_url": "redis://x"}, "redis://x"),
            ({}, None),
        ],
    )  # fmt: skip
    def test_broker_from_parts(self, parts: dict[str, Any], url: str | None) -> None:
        """The old parts make a URL, by new and old names; a URL wins."""
        assert settings(parts).broker_url == url
        assert settings({key.upper(): value for key, value in parts.items()}).broker_url == url

    def test_mutable_defaults_belong_to_one_app(self) -> None:
        """A default dict that is changed in place stays changed, for this app alone."""
        one, two = settings(), settings()
        one.beat_schedule["job"] = 1
        one.profile = "celery"
        assert one.beat_schedule == {"job": 1}
        assert two.beat_schedule == {} == SETTINGS["beat_schedule"].default

    def test_origin(self) -> None:
        """For each key it can be told where its value comes from."""
        conf = settings({"task_protocol": 1}, env={"CELERY_BROKER_URL": "x://"}, task_serializer="yaml")
        names = ("broker_url", "task_serializer", "CELERY_TASK_PROTOCOL", "enable_utc", "zzz")
        assert [conf.origin(name) for name in names] == ["environment", "app", "source", "default", ""]
        assert [conf.value_set_for(name) for name in names] == [True, True, True, False, False]


class TestNames:
    """New, old and prefixed names."""

    @pytest.mark.parametrize(
        "source",
        [
            {"task_acks_late": 7, "broker_url": "b"},
            {"CELERY_ACKS_LATE": 7, "BROKER_URL": "b"},
            {"task_acks_late": 7, "BROKER_URL": "old", "broker_url": "b"},
            {"CELERY_ACKS_LATE": 7, "CELERY_TASK_SERIALIZER": "json", "BROKER_URL": "b", "broker_url": "new"},
        ],
    )
    def test_styles(self, source: dict[str, Any]) -> None:
        """All new, all old, or both names of the same setting."""
        conf = settings(source)
        assert (conf.task_acks_late, conf.broker_url) == (7, "b")

    def test_mixed_styles_are_refused(self) -> None:
        """The error names each rename, towards the style that most names have."""
        with pytest.raises(ImproperlyConfigured, match=r"rename to the new ones:\n    BROKER_URL -> broker_url$"):
            settings({"task_acks_late": True, "BROKER_URL": "b"}).finalize()
        with pytest.raises(ImproperlyConfigured, match=r"old ones:\n    task_serializer -> CELERY_TASK_SERIALIZER$"):
            settings({"CELERY_ACKS_LATE": True, "BROKER_URL": "b", "task_serializer": "x"}).finalize()

    def test_changes_do_not_mix(self) -> None:
        """Names of the constructor and of the source may be of different styles."""
        conf = settings({"CELERY_TASK_SERIALIZER": "yaml"}, CELERY_ACKS_LATE=7, task_protocol=1)
        assert (conf.task_serializer, conf.task_acks_late, conf.task_protocol) == ("yaml", 7, 1)

    @pytest.mark.parametrize(
        ("namespace", "source"),
        [
            ("CELERY", {"CELERY_TASK_ACKS_LATE": 7, "CELERY_BROKER_URL": "b", "BROKER_URL": "x", "DEBUG": True}),
            ("CELERY_", {"CELERY_TASK_ACKS_LATE": 7, "CELERY_BROKER_URL": "b"}),
            ("celery", {"celery_task_acks_late": 7, "celery_broker_url": "b"}),
            ("CELERY", {"CELERY_ACKS_LATE": 7, "CELERY_BROKER_URL": "b"}),
            ("CELERY", {"task_acks_late": 7, "CELERY_BROKER_URL": "b"}),
        ],
    )
    def test_namespace(self, namespace: str, source: dict[str, Any]) -> None:
        """With a namespace its names come first; bare and old ones are read where they are missing."""
        conf = settings(source, namespace=namespace)
        assert (conf.task_acks_late, conf.broker_url) == (7, "b")
        assert conf.table() == {"task_acks_late": 7, "broker_url": "b"}

    def test_namespace_of_the_app(self) -> None:
        """The app's own namespace holds where the source is given none."""
        conf = Settings(namespace="X", environ={})
        conf.read_from({"X_TASK_ACKS_LATE": 7})
        assert (conf.task_acks_late, conf.X_TASK_ACKS_LATE, conf["X_TASK_ACKS_LATE"]) == (7, 7, 7)

    @pytest.mark.parametrize("name", ["task_acks_late", "TASK_ACKS_LATE", "CELERY_ACKS_LATE"])
    def test_either_case(self, name: str) -> None:
        """A setting is read, written and taken back by any of its names, as attribute and as key."""
        conf = settings()
        setattr(conf, name, 7)
        assert conf.changes == {"task_acks_late": 7}
        assert (getattr(conf, name), conf[name], conf.get(name), name in conf) == (7, 7, 7, True)
        del conf[name]
        assert conf[name] is True
        conf[name] = 8
        delattr(conf, name)
        assert conf.changes == {}

    def test_missing_names(self) -> None:
        """A name that is nowhere is an AttributeError or a KeyError, with the nearest one."""
        conf = settings()
        with pytest.raises(AttributeError, match=r"'task_serialize': did you mean task_serializer\?"):
            _ = conf.task_serialize
        for name in ("zzz", 5):
            with pytest.raises(KeyError):
                conf[name]  # type: ignore[index]
        with pytest.raises(AttributeError):
            del conf.zzz
        assert conf.get("zzz") is None
        assert "zzz" not in conf
        assert 5 not in conf  # type: ignore[comparison-overlap]

    def test_settings_of_ones_own(self) -> None:
        """Names of the user's are kept and found, without a warning."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            conf = settings({"my_own": 3}, other_own=4)
            conf.third = 5
            assert (conf.my_own, conf.other_own, conf.third) == (3, 4, 5)
            assert set(conf.table()) == {"my_own", "other_own", "third"}
            prefixed = settings({"P_REDBEAT_REDIS_URL": "r"}, namespace="P")
            assert prefixed.redbeat_redis_url == "r"

    @pytest.mark.parametrize(
        ("source", "namespace", "text"),
        [
            ({"task_seralizer": 1}, None, "setting task_seralizer (did you mean task_serializer?)"),
            ({"acept_content": 1}, None, "setting acept_content (did you mean accept_content?)"),
            ({"CELERY_ACK_LATE": 1}, None, "setting CELERY_ACK_LATE (did you mean task_acks_late?)"),
            ({"worker_foo_bar_baz": 1}, None, "setting worker_foo_bar_baz"),
            ({"P_TASK_SERALIZER": 1}, "P", "setting P_TASK_SERALIZER (did you mean P_TASK_SERIALIZER?)"),
            ({"P_task_serializer": 1}, "P", "setting P_task_serializer (did you mean P_TASK_SERIALIZER?)"),
            ({"P_FOO": 1, "P_BAR": 2}, "P", "settings P_BAR, P_FOO"),
        ],
    )
    def test_unknown_names_are_told_once(self, source: Any, namespace: str | None, text: str) -> None:
        """A name that looks like a setting and is none is one warning, at the first look."""
        conf = settings(source, namespace=namespace)
        with pytest.warns(UnknownSettingWarning) as told:
            conf.finalize()
        assert conf.get("task_serializer") == "json"
        assert [str(one.message).endswith(text) for one in told] == [True], [str(one.message) for one in told]

    def test_unknown_changes_are_told_once(self) -> None:
        """The warning points at the line that set the name."""
        conf = settings()
        with pytest.warns(UnknownSettingWarning, match=r"task_seralizer \(did you mean task_serializer\?\)") as told:
            conf.task_seralizer = 1
        conf.task_seralizer = 2
        conf.update({"task_seralizer": 2})
        assert [one.filename for one in told] == [__file__]

    def test_modules_hold_other_things(self) -> None:
        """Imports, classes, functions and unrelated names of a module are no mistakes, nor are those of a Django
        settings module."""
        module = types.ModuleType("m")
        module.__dict__.update(
            os=re, timedelta=timedelta, task_helper=len, worker_class=int, DEBUG=True, DATABASES={}, TASKS={},
            CACHES={}, RESULT_LIMIT=1, CELERY_TASK_SERIALIZER="yaml",
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert settings(module).task_serializer == "yaml"
        module.__dict__["CELERY_ACK_LATE"] = 1
        with pytest.warns(UnknownSettingWarning, match="the configuration 'm'.*CELERY_ACK_LATE"):
            settings(module).finalize()


class TestSources:
    """Modules, objects, dicts, and the moment they are read."""

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("confpkg.celeryconfig", "module"),
            ("confpkg.celeryconfig:Config", "class"),
            ("confpkg.celeryconfig.Config", "class"),
            ("confpkg.celeryconfig:Config.Inner", "inner"),
            ("confpkg.celeryconfig.Config.Inner", "inner"),
            ("confpkg.celeryconfig:values", "dict"),
            ("confpkg.celeryconfig.values", "dict"),
        ],
    )
    @pytest.mark.usefixtures("proj")
    def test_names(self, name: str, value: str) -> None:
        """A module, an attribute of one by `:` or `.`, in the current folder too."""
        here = list(sys.path)
        assert settings(name).task_serializer == value
        assert sys.path == here

    @pytest.mark.usefixtures("proj")
    def test_what_is_not_there(self) -> None:
        """A missing module is an ImportError at the first look, again at the next; `silent` passes it over."""
        for name in ("confpkg.nope", "nope_nope", "confpkg.celeryconfig:nope", "confpkg.celeryconfig:Config.nope"):
            conf = settings(name)
            for _ in range(2):
                with pytest.raises(ImportError):
                    _ = conf.task_serializer
            quiet = settings()
            assert quiet.read_from(name, silent=True)
            assert quiet.task_serializer == "json"
            assert quiet.read_from(name, silent=True, force=True) is False

    @pytest.mark.usefixtures("proj")
    def test_a_broken_module_says_what_is_missing(self) -> None:
        """An import error inside the module is its own; it is not taken for a missing module."""
        with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
            settings("confpkg.broken").finalize()

    @pytest.mark.usefixtures("proj")
    def test_the_name_of_a_file(self) -> None:
        """`celeryconfig.py` is a common slip."""
        with pytest.raises(ImproperlyConfigured, match=r"leave out \.py"):
            settings("confpkg.celeryconfig.py").finalize()

    def test_objects(self) -> None:
        """A class, an instance, a mapping that is no dict."""

        class Config:
            task_serializer = "yaml"

        assert settings(Config).task_serializer == settings(Config()).task_serializer == "yaml"
        assert settings(types.MappingProxyType({"task_serializer": "yaml"})).task_serializer == "yaml"

    def test_the_source_is_live(self) -> None:
        """A value changed in the source later is seen: so a test may override Django's settings."""
        source = types.SimpleNamespace(CELERY_TASK_SERIALIZER="a")
        conf = settings(source, namespace="CELERY")
        assert (conf.task_serializer, conf.task_always_eager) == ("a", False)
        source.CELERY_TASK_SERIALIZER = "b"
        source.CELERY_TASK_ALWAYS_EAGER = True
        assert (conf.task_serializer, conf.task_always_eager) == ("b", True)

    def test_lazy(self) -> None:
        """The source is read at the first look; writing and adding don't look; force does."""
        loads: list[str] = []
        conf = Settings(
            environ={},
            before_load=lambda: loads.append("before"),
            after_load=lambda: loads.append(conf.task_serializer),
        )
        conf.read_from({"task_serializer": "s"})
        conf.task_protocol = 1
        conf.add_defaults({})
        assert not conf.configured
        assert loads == []
        assert conf.task_protocol == 1
        assert conf.configured
        assert loads == ["before", "s"]
        conf.finalize()
        assert len(loads) == 2

    def test_before_load_may_set(self) -> None:
        """The hook before the load may change settings and give the source."""
        conf = Settings(environ={}, before_load=lambda: conf.update(task_protocol=1))
        assert conf.task_protocol == 1
        late = Settings(environ={}, before_load=lambda: late.read_from({"task_protocol": 1}))
        assert late.task_protocol == 1

    def test_a_second_source_takes_the_place_of_the_first(self) -> None:
        """Sources don't add up; changes stay."""
        conf = settings({"task_serializer": "1", "task_protocol": 1}, enable_utc=False)
        assert conf.task_serializer == "1"
        conf.read_from({"task_serializer": "2"})
        assert (conf.task_serializer, conf.task_protocol, conf.enable_utc) == ("2", 2, False)

    def test_variable(self, proj: Path) -> None:
        """The environment may name the module; where it does not, the error says how."""
        conf = Settings(environ={"MINE": "confpkg.celeryconfig", "EMPTY": ""})
        assert conf.read_from_variable("MINE")
        assert conf.task_serializer == "module"
        for name in ("OTHER", "EMPTY"):
            with pytest.raises(ImproperlyConfigured, match=f'{name}="proj.celeryconfig"'):
                conf.read_from_variable(name)
            assert conf.read_from_variable(name, silent=True) is False
        assert Settings(environ={"CELERY_CONFIG_MODULE": "confpkg.celeryconfig"}).task_serializer == "module"

    def test_threads_load_once(self) -> None:
        """Many threads that look first at the same time read the source once."""
        loads: list[int] = []
        conf = Settings(environ={}, before_load=lambda: loads.append(1))
        conf.read_from({"task_serializer": "s"})
        gate = threading.Barrier(8)
        found: list[str] = []

        def look() -> None:
            gate.wait(5)
            found.append(conf.task_serializer)

        threads = [threading.Thread(target=look) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
        assert (loads, found) == ([1], ["s"] * 8)

    def test_symbol(self) -> None:
        """Names of things: `module:attr`, `module.attr`, a module."""
        assert symbol("os.path:join") is symbol("os.path.join")
        assert symbol("collections.abc").__name__ == "collections.abc"
        assert load_source(5) == 5


class TestViews:
    """table, humanize, and Celery's ways to look."""

    def test_table(self) -> None:
        """What is set, with secrets masked; all settings with `with_defaults`."""
        conf = settings({"broker_url": "redis://u:p@h/1"}, s3_secret_access_key="x", task_protocol=1)
        assert conf.table() == {
            "broker_url": "redis://u:********@h/1",
            "s3_secret_access_key": "********",
            "task_protocol": 1,
        }
        assert conf.table(censored=False)["broker_url"] == "redis://u:p@h/1"
        assert len(conf.table(with_defaults=True)) == len(conf) == len(SETTINGS)
        assert conf.humanize() == (
            "broker_url: 'redis://u:********@h/1'\ns3_secret_access_key: '********'\ntask_protocol: 1"
        )
        assert "p@h" not in repr(conf)

    @pytest.mark.parametrize(
        ("key", "value", "shown"),
        [
            ("broker_url", "redis://:p@h", "redis://:********@h"),
            ("broker_url", "redis://u:a/b@c;d@h/1;redis://u:q@k", "redis://u:********@h/1;redis://u:********@k"),
            ("broker_url", ["amqp://u:p@h", "redis://h"], ["amqp://u:********@h", "redis://h"]),
            ("broker_url", "redis://h:6379/0", "redis://h:6379/0"),
            ("broker_transport_options", {"password": "x", "a": 1, "s": {"password": "y"}},
             {"password": "********", "a": 1, "s": {"password": "********"}}),
            ("task_routes", {"app.tokens": {"queue": "q", "routing_key": "k"}},
             {"app.tokens": {"queue": "q", "routing_key": "k"}}),
            ("redis_password", None, None),
            ("security_key_password", b"x", "********"),
            ("task_default_routing_key", "k", "k"),
            ("my_token", 5, "********"),
        ],
    )  # fmt: skip
    def test_censored(self, key: str, value: Any, shown: Any) -> None:
        """Secrets by their name, passwords by their place in a URL; nothing else is hidden."""
        assert censor(key, value) == shown

    def test_celerys_ways(self) -> None:
        """find_option, get_by_parts and the others."""
        conf = settings({"CELERY_ALWAYS_EAGER": True, "CELERY_TASK_RESULT_EXPIRES": timedelta(hours=1)})
        assert conf.find_option("always_eager").key == "task_always_eager"
        assert conf.find_option("concurrency", "worker").kind == "any"
        assert conf.find_value_for_key("always_eager", "task") is True
        assert conf.get_by_parts("task", "", "always_eager") is True
        assert conf.seconds("result_expires") == 3600
        assert conf.finalize() is conf
        assert conf.deprecated_settings == {"CELERY_ALWAYS_EAGER", "CELERY_TASK_RESULT_EXPIRES"}
        assert conf.maybe_warn_deprecated_settings()
        assert not settings().maybe_warn_deprecated_settings()
        assert conf.without_defaults() == {"task_always_eager": True, "result_expires": timedelta(hours=1)}
        changes, source, base = conf.maps
        assert (changes, source["task_always_eager"], base["task_always_eager"]) == ({}, True, False)

    def test_mapping(self) -> None:
        """It is a mapping: length, order, setdefault, pop, update, clear."""
        conf = settings(task_protocol=1)
        assert conf.setdefault("task_protocol", 5) == 1
        assert conf.pop("task_protocol") == 1
        assert conf.task_protocol == 2
        conf.update({"CELERY_TASK_PROTOCOL": 1}, mine=2)
        assert conf.changes == {"task_protocol": 1, "mine": 2}
        conf.clear()
        assert conf.changes == {}

    def test_observers_and_swap(self) -> None:
        """A callback is told of changes; swap_with takes over another's values."""
        told: list[dict[str, Any]] = []
        conf, other = settings(), settings({"task_protocol": 1}, enable_utc=False)
        conf.bind_to(lambda **change: told.append(change))
        conf.enable_utc = True
        assert told == [{"enable_utc": True}]
        conf.swap_with(other)
        assert (conf.task_protocol, conf.enable_utc) == (1, False)


class TestWords:
    """key=value words of the command line."""

    @pytest.mark.parametrize(
        ("word", "expected"),
        [
            ("broker.heartbeat=10", {"broker_heartbeat": 10}),
            ("broker_heartbeat=10", {"broker_heartbeat": 10}),
            ("task.always_eager=(bool)true", {"task_always_eager": True}),
            ("CELERY_ALWAYS_EAGER=no", {"task_always_eager": False}),
            (".concurrency=3", {"worker_concurrency": 3}),
            ("_concurrency=auto", {"worker_concurrency": "auto"}),
            ("worker.concurrency=(float)3", {"worker_concurrency": 3.0}),
            ("result_expires=3", {"result_expires": 3.0}),
            ("imports=a,b", {"imports": ("a", "b")}),
            ("broker_transport_options={\"a\": 1}", {"broker_transport_options": {"a": 1}}),
            ("broker_url=redis://h/1?a=b", {"broker_url": "redis://h/1?a=b"}),
            ("task_soft_time_limit=1.5", {"task_soft_time_limit": 1.5}),
            ("security_key_password=abc", {"security_key_password": b"abc"}),
            ("my.own=(int)3", {"my_own": 3}),
            ("worker_pidfile=/x", {"worker_pidfile": "/x"}),
        ],
    )  # fmt: skip
    def test_words(self, word: str, expected: dict[str, Any]) -> None:
        """Dots or underscores, the setting's type or one that is named."""
        found = parse_words([word], "worker")
        assert found == expected
        assert [type(value) for value in found.values()] == [type(value) for value in expected.values()]

    @pytest.mark.parametrize(
        ("word", "text"),
        [
            ("nokey", "write key=value"),
            ("task_acks_late=maybe", "task_acks_late=maybe: 'maybe' is no bool"),
            ("task_acks_late=(foo)1", "no type 'foo'"),
            ("broker_heartbeat=x", "broker_heartbeat=x"),
            ("task_seralizer=x", "did you mean task_serializer"),
            ("zzz=1", r"zzz=\(type\)value"),
        ],
    )
    def test_wrong_words(self, word: str, text: str) -> None:
        """Every mistake is an ImproperlyConfigured that says what would be right."""
        with pytest.raises(ImproperlyConfigured, match=text):
            parse_words([word])

    def test_words_are_changes(self) -> None:
        """They beat the source."""
        conf = settings({"broker_heartbeat": 1})
        conf.read_words(["broker.heartbeat=10"])
        assert conf.broker_heartbeat == 10
        assert cast_setting("task_acks_late", "off") is False


def test_importing_is_light() -> None:
    """app.config imports neither asyncio nor logging nor inspect."""
    import subprocess

    code = "import sys, celeriac.app.config as c; print(*{'asyncio', 'inspect', 'logging'} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    words = [sys.executable, "-S", "-c", code]
    found = subprocess.run(words, capture_output=True, text=True, check=True, timeout=20, env=env)
    assert found.stdout.strip() == ""
