"""The order of the rooms, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pgsignals
import pgsignals.durable

ROOT = Path(pgsignals.__file__).parent

# The reading order: a room imports from those before it. What stands in one row knows nothing of its row.
ROWS = [
    ["event"],
    ["tables", "values", "wire"],
    ["decode", "models"],
    ["conf", "signals"],
    ["context"],
    ["publishing"],
    ["middleware"],
    ["receivers"],
    ["sink"],
    ["dispatch"],
    ["triggers"],
    ["durable"],
    ["listening"],
    ["live", "ready"],
    ["admin", "asgi", "checks", "management", "templatetags", "testing", "wsgi"],
    ["apps", "pytest_plugin"],
]
RANK = {room: number for number, row in enumerate(ROWS) for room in row}
# The public names; Django's own places, which hold no code of ours.
OUTSIDE = {"__init__", "migrations"}
FILES = sorted(
    path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0].removesuffix(".py") not in OUTSIDE
)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Names below `pgsignals` that a file imports, wherever in it: at the top, in a function, for types only."""
    package = ["pgsignals", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def rooms_used(path: Path) -> set[str]:
    names = [name.split(".") for name in imported(path)]
    return {name[1] for name in names if name[0] == "pgsignals" and len(name) > 1} - {room_of(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_from_rooms_before_it(path: Path) -> None:
    assert room_of(path) in RANK, "a new room: say where it stands in the reading order"
    later = {room for room in rooms_used(path) if RANK.get(room, 99) >= RANK[room_of(path)]}
    assert not later, f"{room_of(path)} reaches ahead to {sorted(later)}"


def test_the_reader_of_imports_sees_them() -> None:
    """Otherwise the test above would pass whatever the rooms do."""
    assert {"conf", "event", "sink", "wire"} <= rooms_used(ROOT / "listening" / "relay.py")
    assert {"listening", "receivers"} <= rooms_used(ROOT / "management" / "commands" / "listen.py")


def test_the_modules_of_the_durable_part_stand_in_the_order_of_their_imports() -> None:
    """Its docstring is the way through it: each module is named there, after those that it imports from."""
    listed = [line.split()[0] for line in (pgsignals.durable.__doc__ or "").split("\n\n")[1].splitlines()]
    there = {path.stem: path for path in FILES if room_of(path) == "durable"}
    assert sorted(listed) == sorted(there.keys() - {"__init__"})
    for place, module in enumerate(listed):
        names = [name.split(".") for name in imported(there[module])]
        used = {name[2] for name in names if name[:2] == ["pgsignals", "durable"] and len(name) > 2}
        assert used <= set(listed[:place]), f"{module} reaches ahead"


def test_only_one_module_reads_psycopgs_notifications() -> None:
    users = {path.name for path in FILES if ".notifies(" in path.read_text() or "notify_handler" in path.read_text()}
    assert users == {"connection.py"}


def test_only_one_module_reads_the_setting() -> None:
    code = {path.name: code_of(path) for path in FILES}
    users = {name for name, text in code.items() if "settings.PGSIGNALS" in text or "'PGSIGNALS'" in text}
    assert users == {"conf.py"}


def code_of(path: Path) -> str:
    """The file without what it says to people: comments, and texts with a space."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and " " in str(node.value):
            node.value = ""
    return ast.unparse(tree)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_library_needs_no_settings_and_no_apps() -> None:
    """Models and migrations import it while the app registry is still being filled."""
    said = run(
        "import pgsignals\n"
        "from django.apps import apps\n"
        "from django.conf import settings\n"
        "print(settings.configured, apps.ready, *pgsignals.__all__)"
    )
    assert said.split() == ["False", "False", *pgsignals.__all__]


@pytest.mark.parametrize("module", ["pgsignals.signals", "pgsignals.listening.relay", "pgsignals.dispatch"])
def test_without_channels_everything_but_the_live_part_works(module: str) -> None:
    said = run(f"import sys; sys.modules['channels'] = None; import {module}; print('imported')")
    assert said == "imported\n"


def test_the_public_names_are_sorted_and_there() -> None:
    assert pgsignals.__all__ == sorted(pgsignals.__all__)
    assert all(getattr(pgsignals, name).__doc__ for name in pgsignals.__all__)


def test_every_module_says_what_it_is_for() -> None:
    silent = [path.name for path in FILES if path.read_text() and not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []
