"""A stand-in for an object that is looked up at each use."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any


class Proxy:
    """Stands for what `look()` gives. `isinstance`, attributes, calls and the usual operators reach through."""

    __slots__ = ("__weakref__", "_look")

    def __init__(self, look: Callable[[], Any]) -> None:
        object.__setattr__(self, "_look", look)

    def _get_current_object(self) -> Any:
        """What it stands for now."""
        return object.__getattribute__(self, "_look")()

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return type(self._get_current_object())

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        return vars(self._get_current_object())

    @property
    def __doc__(self) -> Any:  # type: ignore[override]
        return self._get_current_object().__doc__

    @property
    def __module__(self) -> Any:  # type: ignore[override]
        return self._get_current_object().__module__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._get_current_object(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._get_current_object(), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._get_current_object(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._get_current_object()(*args, **kwargs)

    def __repr__(self) -> str:
        return repr(self._get_current_object())

    def __str__(self) -> str:
        return str(self._get_current_object())

    def __bool__(self) -> bool:
        return bool(self._get_current_object())

    def __eq__(self, other: object) -> bool:
        return bool(self._get_current_object() == _bare(other))

    def __hash__(self) -> int:
        return hash(self._get_current_object())

    def __dir__(self) -> list[str]:
        return dir(self._get_current_object())

    def __len__(self) -> int:
        return len(self._get_current_object())

    def __iter__(self) -> Any:
        return iter(self._get_current_object())

    def __contains__(self, item: Any) -> bool:
        return item in self._get_current_object()

    def __getitem__(self, key: Any) -> Any:
        return self._get_current_object()[key]

    def __or__(self, other: Any) -> Any:
        return operator.or_(self._get_current_object(), _bare(other))

    def __enter__(self) -> Any:
        return self._get_current_object().__enter__()

    def __exit__(self, *exc: Any) -> Any:
        return self._get_current_object().__exit__(*exc)

    def __copy__(self) -> Any:
        return self._get_current_object()

    def __deepcopy__(self, memo: Any) -> Any:
        return self._get_current_object()

    def __reduce__(self) -> Any:
        return self._get_current_object().__reduce__()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._get_current_object().__reduce_ex__(protocol)


def _bare(value: Any) -> Any:
    return value._get_current_object() if type(value) is Proxy else value
