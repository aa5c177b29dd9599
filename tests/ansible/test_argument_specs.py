"""Every role says what its variables are, and its defaults are what it says. Roles that come later are covered, too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from host.fleet.hosts import FRONTS

ROLES = Path(__file__).resolve().parents[2] / "ansible" / "roles"
NAMES = sorted(path.name for path in ROLES.iterdir() if path.is_dir())
TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "path": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "list": list,
    "dict": dict,
    "raw": object,
}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text()) if path.exists() else {}


def specs(role: str) -> dict[str, Any]:
    found: dict[str, Any] = read(ROLES / role / "meta" / "argument_specs.yml").get("argument_specs", {})
    return found


def defaults(role: str) -> dict[str, Any]:
    found: dict[str, Any] = read(ROLES / role / "defaults" / "main.yml") or {}
    return found


def options(role: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Entry point, name and description of each option."""
    for entry, spec in specs(role).items():
        for name, option in spec.get("options", {}).items():
            yield entry, name, option


def is_template(value: object) -> bool:
    return isinstance(value, str) and "{{" in value


def fits(value: object, option: dict[str, Any]) -> bool:
    """Whether a value is of the option's type, and of its choices."""
    kind = option.get("type", "str")
    if isinstance(value, bool) and kind not in ("bool", "raw"):
        return False  # which is an int to Python
    if "choices" in option and value not in option["choices"]:
        return False
    if kind == "list" and isinstance(value, list) and "elements" in option:
        return all(isinstance(one, TYPES[option["elements"]]) for one in value)
    return isinstance(value, TYPES[kind])


def test_there_are_roles() -> None:
    assert NAMES


@pytest.mark.parametrize("role", NAMES)
def test_a_role_describes_itself(role: str) -> None:
    assert "main" in specs(role), f"{role}: meta/argument_specs.yml with an entry point main"
    for entry, spec in specs(role).items():
        assert spec.get("short_description"), f"{role}: {entry}: a short_description"
        source = ROLES / role / "tasks"
        assert (source / f"{entry}.yml").exists(), f"{role}: {entry}: tasks/{entry}.yml"


@pytest.mark.parametrize("role", NAMES)
def test_every_default_is_described(role: str) -> None:
    described = set(specs(role)["main"].get("options", {}))
    assert set(defaults(role)) - described == set(), "described as an option of main"


@pytest.mark.parametrize("role", NAMES)
def test_every_option_is_as_the_defaults_say(role: str) -> None:
    given = defaults(role)
    for entry, name, option in options(role):
        what = f"{role}: {entry}: {name}"
        assert option.get("description"), f"{what}: a description"
        assert option.get("type", "str") in TYPES, f"{what}: a type"
        if option.get("type") == "list":
            assert option.get("elements") in TYPES, f"{what}: elements"
        if option.get("required"):
            assert "default" not in option, f"{what}: required, and has a default"
            assert name not in given, f"{what}: required, and is among the defaults"
        elif "default" in option:
            assert name in given, f"{what}: its default stands in defaults/main.yml"
            assert (option["default"], type(option["default"])) == (given[name], type(given[name])), what
        if name in given and not is_template(given[name]):
            assert fits(given[name], option), f"{what}: {given[name]!r} is no {option.get('type', 'str')}"


@pytest.mark.parametrize("role", NAMES)
def test_variables_have_the_role_s_prefix(role: str) -> None:
    # The model server's own role shares its variables with playbooks and the action plugin.
    names = {name for _, name, _ in options(role)} | set(defaults(role))
    prefixes = (f"{role}_", "modelhost_")
    assert [name for name in sorted(names) if not name.startswith(prefixes)] == []


@pytest.mark.parametrize("role", NAMES)
def test_no_secret_has_a_default(role: str) -> None:
    secrets = {name for name in defaults(role) if re.search(r"(password|secret|token)$", name)}
    assert secrets == set()


@pytest.mark.parametrize(
    ("value", "option", "expected"),
    [
        (1, {"type": "int"}, True),
        (True, {"type": "int"}, False),
        ("1", {"type": "int"}, False),
        (1, {"type": "float"}, True),
        ("a", {"choices": ["a", "b"]}, True),
        ("c", {"choices": ["a", "b"]}, False),
        ([1], {"type": "list", "elements": "str"}, False),
        (["1"], {"type": "list", "elements": "str"}, True),
        ({}, {"type": "list", "elements": "str"}, False),
    ],
)
def test_fits(value: object, option: dict[str, Any], expected: bool) -> None:
    assert fits(value, option) is expected


def test_what_the_inventory_is_checked_with_is_what_the_role_does() -> None:
    """Defaults of a role cannot be seen by what reads the inventory before any role."""
    assert defaults("modelhost")["modelhost_fronts"] == FRONTS
