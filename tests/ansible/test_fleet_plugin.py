"""The action plugin in a real `ansible-playbook`, on inventories good and broken. No host is contacted."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from archives import packed, write_doubling

from host.config.deployment_file import read_entries

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "ansible" / "inventories" / "example"
EC2 = ROOT / "ansible" / "inventories" / "ec2"
PLAYBOOK = """
- hosts: "{{ on | default('modelhost') }}"
  gather_facts: false
  tasks:
    - name: Read the fleet
      run_once: true
      modelhost_fleet:
        change: "{{ change | default(omit) }}"
        record: "{{ record | default(false) }}"
      register: result
      ignore_errors: true
    - name: Show what it says
      run_once: true
      ansible.builtin.debug:
        msg: "result={{ result | to_json | b64encode }}="
"""
LIMIT_S = 90


class Run:
    """What one run of the playbook said of the plugin's task."""

    def __init__(self, directory: Path, inventory: Path, *arguments: str, **variables: Any) -> None:
        playbook = directory / "playbook.yml"
        playbook.write_text(PLAYBOOK)
        command = [sys.executable, "-m", "ansible", "playbook", str(playbook)]
        command += ["-i", str(inventory), "-e", json.dumps(variables), *arguments]
        self.process = subprocess.run(
            command,
            cwd=directory,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(directory),
                "LC_ALL": "C.UTF-8",
                "ANSIBLE_ACTION_PLUGINS": str(ROOT / "ansible" / "action_plugins"),
                "ANSIBLE_LOCAL_TEMP": str(directory / "tmp"),
            },
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    @property
    def result(self) -> dict[str, Any]:
        """The task's result."""
        said = re.search(r"result=([A-Za-z0-9+/=]+)=", self.process.stdout)
        assert said, self.process.stdout + self.process.stderr
        result: dict[str, Any] = json.loads(base64.b64decode(said[1]))
        return result

    @property
    def fleet(self) -> dict[str, Any]:
        """The fleet, of a run without problems."""
        assert not self.result["failed"], self.result
        fleet: dict[str, Any] = self.result["fleet"]
        return fleet

    @property
    def problems(self) -> list[str]:
        """What it refused."""
        assert self.result["failed"], self.result
        problems: list[str] = self.result["problems"]
        return problems


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archives of the example's models, and two versions of churn."""
    directory = tmp_path_factory.mktemp("packages")
    for name, version in (("breast_cancer", "1"), ("diabetes", "1"), ("digits", "1"), ("churn", "3"), ("churn", "4")):
        source = write_doubling(tmp_path_factory.mktemp("source"), name, version)
        (directory / f"{name}-{version}.tar").write_bytes(packed(source))
    return directory


def write(directory: Path, files: Mapping[str, Any]) -> Path:
    """An inventory out of plain values."""
    for name, content in files.items():
        path = directory / f"{name}.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return directory


def hosts(*names: str, **groups: Any) -> dict[str, Any]:
    """A `hosts.yml`: the group modelhost, and others."""
    return {"all": {"children": {"modelhost": {"hosts": {name: {} for name in names}}, **groups}}}


# -- good ones --------------------------------------------------------------------------------------------
def test_the_example(tmp_path: Path, packages: Path) -> None:
    fleet = Run(tmp_path, EXAMPLE, modelhost_packages=str(packages)).fleet
    runs = {
        host: {key: entry.get("processes") for key, entry in of["models"].items()}
        for host, of in fleet["hosts"].items()
    }
    assert runs == {
        "h1": {"breast_cancer": 4, "diabetes": 1},
        "h2": {"breast_cancer": 2, "diabetes": 1, "digits": 1},
        "h3": {"diabetes": 1, "digits": 1},
    }
    assert {host: (of["address"], of["zone"], of["port"]) for host, of in fleet["hosts"].items()} == {
        "h1": ("192.0.2.11", "a", 8080),
        "h2": ("192.0.2.12", "b", 8080),
        "h3": ("192.0.2.13", "c", 8080),
    }
    assert fleet["models"]["breast_cancer"]["hosts"]["h1"] == {"processes": 4, "version": "1"}
    assert fleet["notes"] == []
    for host in fleet["hosts"].values():
        path = tmp_path / "deployment.toml"
        path.write_text(host["deployment"])
        problems: list[str] = []
        assert [entry.name for entry in read_entries(path, problems)] == list(host["models"])
        assert not problems
        assert all(Path(package["file"]).is_file() for package in host["packages"])


def test_the_example_for_ec2_finds_models_by_tag(tmp_path: Path) -> None:
    """What amazon.aws does with tags, by the plugin that only composes and groups; the groups' files as they are."""
    told = yaml.safe_load((EC2 / "aws_ec2.yml").read_text())
    composed = {key: told[key] for key in ("compose", "keyed_groups", "strict")}
    instances = {
        "one": {"Role": "modelhost", "Models": "breast_cancer, digits"},
        "two": {"Role": "modelhost", "Models": "digits"},
        "three": {"Role": "haproxy"},
    }
    inventory = tmp_path / "inventory"
    shutil.copytree(EC2, inventory, ignore=shutil.ignore_patterns("aws_ec2.yml"))
    write(
        inventory,
        {
            "1": {
                "all": {
                    "hosts": {
                        name: {
                            "tags": tags,
                            "private_ip_address": f"10.0.0.{number}",
                            "placement": {"availability_zone": f"eu-central-1{'ab'[number % 2]}"},
                        }
                        for number, (name, tags) in enumerate(instances.items(), 1)
                    }
                }
            },
            "2": {"plugin": "ansible.builtin.constructed", **composed},
        },
    )
    fleet = Run(tmp_path, inventory).fleet
    assert {host: list(of["models"]) for host, of in fleet["hosts"].items()} == {
        "one": ["breast_cancer", "digits"],
        "two": ["digits"],
    }
    assert fleet["hosts"]["one"]["address"] == "10.0.0.1"
    assert fleet["hosts"]["one"]["zone"] == "eu-central-1b"
    assert fleet["hosts"]["two"]["packages"][0]["uri"] == "s3://models.example.com/production/digits-1.tar"


def test_layers_come_in_ansibles_own_order(tmp_path: Path, packages: Path) -> None:
    """The number of threads is a layer's place in the order, from what is said in the inventory to host_vars."""
    groups = {
        "a_late": {"hosts": {"h1": None}, "vars": {"ansible_group_priority": 10}},
        "z_early": {"hosts": {"h1": None}},
        "parent": {
            "children": {"modelhost": None},
            "vars": {"modelhost_models": {"churn": {"threads": 2, "memory": "2MiB"}}},
        },
    }
    inventory = write(
        tmp_path / "inventory",
        {
            "hosts": hosts("h1", "h2", **groups),
            "group_vars/all/main": {
                "modelhost_packages": str(packages),
                "modelhost_models": {"churn": {"threads": 3, "version": "3", "memory": "3MiB"}},
            },
            "group_vars/z_early": {"modelhost_models": {"churn": {"threads": 4, "processes": 4}}},
            "group_vars/a_late": {"modelhost_models": {"churn": {"threads": 5, "processes": 5}}},
            "host_vars/h1": {"modelhost_models": {"churn": {"threads": 6}}},
        },
    )
    fleet = Run(tmp_path, inventory).fleet
    assert fleet["hosts"]["h1"]["models"]["churn"] == {
        "name": "churn", "version": "3", "threads": 6, "processes": 5, "memory": "3MiB", "default": True,
    }  # fmt: skip
    assert fleet["hosts"]["h2"]["models"]["churn"] == {
        "name": "churn", "version": "3", "threads": 3, "memory": "3MiB", "processes": 1, "default": True,
    }  # fmt: skip


def test_templates_are_filled_in_with_each_hosts_variables_and_only_layers_count(
    tmp_path: Path, packages: Path
) -> None:
    inventory = write(
        tmp_path / "inventory",
        {
            "hosts": hosts("h1", "h2"),
            "group_vars/modelhost": {
                "modelhost_packages": str(packages),
                "churn_version": 3,
                "modelhost_models": {"churn": {"version": "{{ churn_version }}", "processes": "{{ cores * 2 }}"}},
            },
            "host_vars/h1": {"cores": 1},
            "host_vars/h2": {"cores": 2, "churn_version": "4"},
        },
    )
    run = Run(tmp_path, inventory, modelhost_models={"digits": {"version": "1"}})
    assert {name: of["models"] for name, of in run.fleet["hosts"].items()} == {
        "h1": {"churn": {"name": "churn", "version": "3", "processes": 2, "default": True}},
        "h2": {"churn": {"name": "churn", "version": "4", "processes": 4, "default": True}},
    }


def test_a_change_is_tried_then_recorded_then_there(tmp_path: Path, packages: Path) -> None:
    inventory = write(
        tmp_path / "inventory",
        {
            "hosts": hosts("h1", "h2"),
            "group_vars/modelhost": {
                "modelhost_packages": str(packages),
                "modelhost_models": {"churn": {"version": "3"}},
            },
        },
    )
    change = {"model": "churn", "version": "4"}
    assert Run(tmp_path, inventory, change=change).fleet["models"]["churn"]["versions"] == ["4"]
    tried = Run(tmp_path, inventory, "--check", "--diff", change=change, record=True).result
    assert tried["changed"]
    assert not (inventory / "group_vars" / "all").exists()
    written = Run(tmp_path, inventory, "--limit", "h2", change=change, record=True).result
    assert written["changed"]
    assert written["diff"] == tried["diff"]
    assert Path(written["path"]).read_text() == written["diff"]["after"]
    assert not Run(tmp_path, inventory, change=change, record=True).result["changed"]
    limited = Run(tmp_path, inventory, "--limit", "h1").fleet
    assert limited["models"]["churn"]["hosts"].keys() == {"h1", "h2"}
    assert limited["models"]["churn"]["versions"] == ["4"]


def test_secrets_are_not_opened_and_a_play_may_have_other_hosts(tmp_path: Path, packages: Path) -> None:
    """Nobody gives a password here, so opening one would fail."""
    vault = "secret: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  61626364\n"
    inventory = write(
        tmp_path / "inventory",
        {
            "hosts": hosts("h1"),
            "group_vars/all/main": f"modelhost_packages: {packages}\nuses: '{{{{ secret }}}}'\n{vault}",
            "host_vars/h1": "modelhost_models:\n  churn: {version: '3', processes: '{{ 1 + 1 }}'}\n",
        },
    )
    fleet = Run(tmp_path, inventory, on="localhost").fleet
    assert fleet["hosts"]["h1"]["models"]["churn"]["processes"] == 2


# -- broken ones ------------------------------------------------------------------------------------------
def test_every_problem_names_who_said_it_and_where(tmp_path: Path, packages: Path) -> None:
    inventory = write(
        tmp_path / "inventory",
        {
            "hosts": hosts("h1", "h2", models_old={"hosts": {}}),
            "group_vars/all/main": f"modelhost_packages: {packages}\n",
            "group_vars/models_old": "modelhost_models:\n  digits: {version: '1'}\n",
            "group_vars/modelhost": (
                "modelhost_host_memory: 1GiB\n"
                "modelhost_models:\n"
                "  churn:\n"
                "    version: 1.10\n"
                "    process: 2\n"
                "  chrun: {version: '3'}\n"
                "  diabetes: {version: '7', processes: 0, threads: \"{{ undefined_one }}\"}\n"
            ),
            "host_vars/h2": "modelhost_port: http\nmodelhost_models:\n  breast_cancer: {version: 1, processes: 9}\n",
        },
    )
    run = Run(tmp_path, inventory)
    group = "group modelhost (inventory/group_vars/modelhost.yml"
    assert run.problems == [
        f"hosts h1, h2: {group}:7): modelhost_models.diabetes.threads: 'undefined_one' is undefined",
        'host h2: modelhost_port: expected a whole number >= 1 and <= 65535, received "http"',
        f'{group}:4): modelhost_models.churn.version: expected a version in quotes, such as "1.1" '
        "(without them YAML makes 1.10 the number 1.1), received the number 1.1",
        f'{group}:5): modelhost_models.churn: expected keys of [[models]] but name, received "process"; '
        'did you mean "processes"?',
        "group models_old (inventory/group_vars/models_old.yml:2): modelhost_models.digits: "
        "expected a host of the group modelhost that runs it, found none",
        f"{group}:6): modelhost_models.chrun: expected a model of which there is an archive in {packages}, "
        'received "chrun"; did you mean "churn"?',
        f"{group}:7): modelhost_models.diabetes.version: expected a version of which there is an archive in "
        f'{packages}: 1, received "7"',
        f"{group}:7): modelhost_models.diabetes.processes: expected a whole number >= 1 and <= 256, received 0",
        "host h2: memory: expected limits of at most 1,024 MiB in all (modelhost_host_memory), received "
        "breast_cancer 1 9 x 512 MiB + front 2 x 256 MiB + control 1 x 64 MiB = 5,184 MiB",
    ]
    assert run.result["msg"].splitlines() == ["The inventory has 9 problems:", *run.problems]


def test_a_conflict_with_what_was_changed_names_both_places(tmp_path: Path, packages: Path) -> None:
    inventory = write(
        tmp_path / "inventory",
        {
            "hosts": hosts("h1"),
            "group_vars/all/main": {"modelhost_packages": str(packages)},
            "group_vars/all/modelhost_changes": {"modelhost_changes": {"churn": {"version": "3", "instead_of": "2"}}},
            "host_vars/h1": {"modelhost_models": {"churn": {"version": "4"}}},
        },
    )
    (problem,) = Run(tmp_path, inventory).problems
    assert problem == (
        f"{inventory}/group_vars/all/modelhost_changes.yml: modelhost_changes.churn.version: expected host h1 "
        '(inventory/host_vars/h1.yml:3) to say the version "2", instead of which this says "3", or this one, '
        'received "4": remove the one that is out of date'
    )


def test_an_inventory_without_hosts_and_packages(tmp_path: Path) -> None:
    inventory = write(tmp_path / "inventory", {"hosts": {"all": {"children": {"modelhost": {"hosts": {"h1": {}}}}}}})
    assert Run(tmp_path, inventory).problems == [
        "modelhost_packages: expected a directory of archives that modelhost pack wrote, or a URI, found none"
    ]
