"""The floors of the house: who may know whom."""

from __future__ import annotations

from tests.house.code import circles, imports, modules, room

FLOORS = {
    "errors": 1,
    "model": 2,
    "ports": 3, "wire": 3, "canvas": 3, "telemetry": 3, "drivers": 3,
    "brokers": 4, "backends": 4, "pools": 4, "runtime": 4, "worker": 4, "beat": 4, "monitor": 4,
    "app": 5,
    "compat": 6, "dashboard": 6, "testing": 6,
    "states": 6,  # Celery's module of that name
    "celeriac": 6.5,  # the package's own __init__: the public names
    "cli": 7, "contrib": 7,
    "__main__": 8,
}  # fmt: skip
WINGS = {name for name, floor in FLOORS.items() if floor == 4}
DRIVES = {("worker", "pools")}
"""The one wing that uses another: a worker drives its pool."""


def test_every_room_has_a_floor() -> None:
    """No module stands outside the plan."""
    assert {room(module) for module in modules()} <= set(FLOORS)


def test_imports_go_down_only() -> None:
    """A module imports from a lower floor or from its own room; lazy and typing imports count."""
    wrong = []
    for module, targets in imports().items():
        for target, line in targets.items():
            ours, theirs = room(module), room(target)
            if ours != theirs and FLOORS[theirs] >= FLOORS[ours] and (ours, theirs) not in DRIVES:
                wrong.append(f"{module}:{line} imports {target} (floor {FLOORS[ours]} -> {FLOORS[theirs]})")
    assert not wrong, "\n".join(wrong)


def test_wings_do_not_know_each_other() -> None:
    """The wings meet in `ports`; only the worker drives the pools."""
    met = {
        (room(module), room(target))
        for module, targets in imports().items()
        for target in targets
        if room(module) != room(target) and {room(module), room(target)} <= WINGS
    }
    assert met <= DRIVES


def test_no_circles() -> None:
    """No circle of imports, none hidden in functions or under TYPE_CHECKING."""
    assert circles(imports()) == []
