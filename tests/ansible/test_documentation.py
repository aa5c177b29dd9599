"""What modules say of themselves is what they take and give."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from module_runs import ANSIBLE, load, names, specification_of

OF_ANSIBLE = {"diff", "skipped", "msg"}
"""Keys of results that every module may have."""


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Give what ansible-doc makes of every module."""
    home = tmp_path_factory.mktemp("ansible")
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-doc")), "-t", "module", "--json", *names()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "ANSIBLE_LIBRARY": str(ANSIBLE / "library"), "ANSIBLE_HOME": str(home)},
    )
    assert done.returncode == 0, done.stderr
    assert "ERROR" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", names())
def test_options_are_documented_as_they_are(name: str, documented: dict[str, Any]) -> None:
    told = documented[name]["doc"]
    specification = specification_of(load(name))
    assert told["module"] == name
    assert told["options"].keys() == specification["argument_spec"].keys()
    for option, taken in specification["argument_spec"].items():
        of_option = told["options"][option]
        assert of_option["description"], option
        assert of_option.get("type", "str") == taken.get("type", "str"), option
        assert of_option.get("required", False) == taken.get("required", False), option
        assert of_option.get("default") == taken.get("default"), option
        assert of_option.get("choices") == taken.get("choices"), option
    support = told["attributes"]["check_mode"]["support"]
    assert (support == "full") is specification["supports_check_mode"]


@pytest.mark.parametrize("name", names())
def test_examples_are_tasks_with_options_that_there_are(name: str, documented: dict[str, Any]) -> None:
    options = documented[name]["doc"]["options"]
    tasks = list(flat(yaml.safe_load(documented[name]["examples"])))
    used = [task[name] for task in tasks if name in task]
    assert used
    for given in used:
        assert (given or {}).keys() <= options.keys()
        assert {option for option, of_option in options.items() if of_option.get("required")} <= (given or {}).keys()
    assert all(task["name"] for task in tasks)


def flat(tasks: list[dict[str, Any]]) -> Any:
    """Tasks, and those of their blocks."""
    for task in tasks:
        yield task
        for word in ("block", "rescue", "always"):
            yield from flat(task.get(word, []))


@pytest.mark.parametrize("name", names())
def test_every_result_is_described(name: str, documented: dict[str, Any]) -> None:
    for key, value in documented[name]["return"].items():
        assert value["description"] and value["type"] and value["returned"], key


def test_modules_import_only_the_standard_library_and_ansible() -> None:
    import ast

    for path in [*(ANSIBLE / "library").glob("*.py"), *(ANSIBLE / "module_utils").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                found = [node.module or ""]
            for imported in found:
                top = imported.partition(".")[0]
                assert top in sys.stdlib_module_names or imported.startswith("ansible.module_utils."), (path, imported)
