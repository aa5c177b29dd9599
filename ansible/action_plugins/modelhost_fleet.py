"""What an inventory says of the fleet: merged, checked as a whole and made into what each host gets. On the controller.

Arguments: `change` (a what-if: `model`, and one of `version`, `processes`, `removed`, `rollback`); `record` (true:
write that change into the inventory's file of changes, and do nothing else).

Here Ansible's own objects are read; what they mean is known to `host.fleet`, which knows nothing of Ansible.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.inventory.helpers import sort_groups
from ansible.inventory.manager import InventoryManager
from ansible.plugins.action import ActionBase
from ansible.vars.plugins import get_vars_from_path

try:  # where a value was written, as Ansible shows it in its own messages; without it the group or host is named
    from ansible._internal._datatag._tags import Origin
except ImportError:
    Origin = None

try:
    from host.fleet.controller import HostVariables, ReadInventory, read_fleet, recorded, write_recorded
    from host.fleet.hosts import FACTS, VARIABLES
    from host.fleet.layers import UNREADABLE, VARIABLE, Layer
    from host.fleet.plain import plain
    from host.protocol.errors import ConfigError
except ImportError as error:
    MISSING: ImportError | None = error
else:
    MISSING = None

GROUP = "modelhost"
OTHERS = ("modelhost_packages", "modelhost_packages_checksums", "modelhost_changes_file", "inventory_dir")
_NUMBER = re.compile(r"[0-9]{1,9}")
TEMPLATE_MARKS = ("{{", "{%", "{#")


class ActionModule(ActionBase):  # type: ignore[misc]
    """Run once, whatever hosts the play has: the whole fleet is read."""

    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Read the fleet, or record a change."""
        if MISSING is not None:
            raise AnsibleActionFail(f"Ansible's own Python needs modelhost: pip install 'modelhost[fleet]' ({MISSING})")
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            argument_spec={"change": {"type": "dict"}, "record": {"type": "bool", "default": False}}
        )
        change = plain(arguments["change"])
        problems: list[str] = []
        read = InventoryReader(self._templar, self._loader, task_vars or {}).read(problems)
        try:
            if arguments["record"]:
                return result | self._record(read, change, problems)
            fleet = read_fleet(read, change, problems)
        except ConfigError as error:
            return result | failed(error)
        return result | {"changed": False, "fleet": fleet, "ansible_facts": {"modelhost_fleet": fleet}}

    def _record(self, read: ReadInventory, change: Any, problems: list[str]) -> dict[str, Any]:
        """Write a change into the file of changes."""
        if change is None:
            raise AnsibleActionFail("record: expected change beside it, found none")
        texts = recorded(read, change, problems)
        changed = texts.before != texts.after
        if changed and not self._task.check_mode:
            write_recorded(texts)
        path = str(texts.path)
        diff = {"before": texts.before, "after": texts.after, "before_header": path, "after_header": path}
        return {"changed": changed, "path": path, "diff": diff}


def failed(error: ConfigError) -> dict[str, Any]:
    """Every problem, to be read and to be worked with."""
    problems = list(error.problems)
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return {"failed": True, "msg": "\n".join([f"The inventory has {count}:", *problems]), "problems": problems}


class InventoryReader:
    """Reads of an inventory what is modelhost's, each group's and host's own."""

    def __init__(self, templar: Any, loader: Any, task_vars: Mapping[str, Any]) -> None:
        self._templar = templar
        self._loader = loader
        self._hostvars = task_vars["hostvars"]
        # The run's own, so that a dynamic inventory is asked once and every host is one that the plays know.
        self._inventory = getattr(self._hostvars, "_inventory", None) or InventoryManager(
            loader, task_vars["ansible_inventory_sources"]
        )

    def read(self, problems: list[str]) -> ReadInventory:
        """Everything, in plain values; what cannot be templated is added to `problems`."""
        group = self._inventory.groups.get(GROUP)
        hosts = sorted((host.name for host in group.get_hosts()) if group else ())
        known = {name: self._variables(name, problems) for name in hosts}
        first = known[hosts[0]] if hosts else {}
        directory = first.get("inventory_dir")
        return ReadInventory(
            hosts={
                name: HostVariables(
                    variables={key: found[key] for key in VARIABLES if key in found},
                    facts=found["ansible_facts"],
                    packages=found.get("modelhost_packages"),
                    checksums=found.get("modelhost_packages_checksums"),
                )
                for name, found in known.items()
            },
            layers=list(self._layers(hosts, problems)),
            directory=Path(directory) if directory else None,
            changes_file=first.get("modelhost_changes_file"),
        )

    def _variables(self, host: str, problems: list[str]) -> dict[str, Any]:
        """What is read of one host: these variables, and no other one is looked at."""
        variables = self._hostvars[host]
        found = {}
        for key in (*VARIABLES, *OTHERS):
            if key in variables:
                try:
                    found[key] = plain(variables[key])
                except (AnsibleError, ValueError) as error:
                    problems.append(f"host {host}: {key}: {error}")
        facts = self._hostvars.raw_get(host).get("ansible_facts", {})
        found["ansible_facts"] = {key: plain(facts[key]) for key in FACTS if key in facts}
        return found

    # -- layers -------------------------------------------------------------------------------------------
    def _layers(self, hosts: list[str], problems: list[str]) -> Iterator[Layer]:
        known = set(hosts)
        for origin, having, value in self._said():
            here = [host for host in having if host in known]
            layer = Layer(origin=origin, hosts=tuple(here), models=None, places=places_of(value))
            try:
                models = plain(value)
            except (AnsibleError, ValueError) as error:
                problems.append(f"{layer.where()}: {VARIABLE}: {error}")
                continue
            if here and has_template(models):
                for host in here:
                    templated = self._templated(host, value, layer, problems)
                    yield dataclasses.replace(layer, hosts=(host,), models=templated)
            else:
                yield dataclasses.replace(layer, models=models)

    def _templated(self, host: str, value: Any, layer: Layer, problems: list[str]) -> Any:
        """A layer's value with the variables of one host, each key by itself, so that one problem hides no other."""
        templar = self._templar.copy_with_new_env(available_variables=self._hostvars.raw_get(host))

        def made(path: tuple[str, ...], part: Any) -> Any:
            if isinstance(part, Mapping) and len(path) < 2:
                return {plain(key): made((*path, str(key)), content) for key, content in part.items()}
            try:
                content = plain(templar.template(part))
            except (AnsibleError, ValueError) as error:
                of_host = "" if layer.origin == f"host {host}" else f"host {host}: "
                problems.append(f"{of_host}{layer.where(*path)}: {'.'.join([VARIABLE, *path])}: {error}")
                return UNREADABLE if len(path) == 2 else None
            if path[-1:] == ("version",) or not has_template(part):
                return content
            # Before ansible-core 2.19 what a template makes is always a text.
            return int(content) if isinstance(content, str) and _NUMBER.fullmatch(content) else content

        return made((), value)

    def _said(self) -> Iterator[tuple[str, list[str], Any]]:
        """Who says `modelhost_models` to which hosts, and what, in the order in which Ansible lets later ones win.

        That order is ansible.vars.manager's: what stands in the inventory itself, then the files beside it and beside
        the playbook; first for the group `all`, then for the other groups, then for hosts.
        """
        everything = self._inventory.groups["all"]
        groups = [group for group in sort_groups(self._inventory.groups.values()) if group is not everything]
        hosts = sorted(self._inventory.hosts.values(), key=lambda host: host.name)
        for entities in ([everything], groups):
            yield from self._inline(entities)
        for entities in ([everything], groups):
            yield from self._files(entities)
        yield from self._inline(hosts)
        yield from self._files(hosts)

    def _inline(self, entities: list[Any]) -> Iterator[tuple[str, list[str], Any]]:
        for entity in entities:
            if VARIABLE in entity.vars:
                yield *_named(entity), entity.vars[VARIABLE]

    def _files(self, entities: list[Any]) -> Iterator[tuple[str, list[str], Any]]:
        for directory in self._directories():
            for entity in entities:
                found = get_vars_from_path(self._loader, directory, [entity], "all")
                if VARIABLE in found:
                    yield *_named(entity), found[VARIABLE]

    def _directories(self) -> list[str]:
        """Where `group_vars` and `host_vars` are looked for, each once."""
        sources = [source for source in self._inventory._sources if source]
        inventories = [
            str(Path(source) if Path(source).is_dir() else Path(source).parent)
            for source in sources
            if "," not in source or Path(source).exists()  # h1,h2 is a list of hosts
        ]
        return list(dict.fromkeys([*inventories, self._loader.get_basedir()]))


def _named(entity: Any) -> tuple[str, list[str]]:
    """A group or a host, with the hosts that it says something to."""
    if hasattr(entity, "get_hosts"):
        return f"group {entity.name}", [host.name for host in entity.get_hosts()]
    return f"host {entity.name}", [entity.name]


def has_template(value: Any) -> bool:
    """Whether there is a template somewhere in a plain value."""
    if isinstance(value, Mapping):
        return any(has_template(part) for part in value.values())
    if isinstance(value, list):
        return any(map(has_template, value))
    return isinstance(value, str) and any(mark in value for mark in TEMPLATE_MARKS)


def places_of(value: Any) -> dict[tuple[str, ...], str]:
    """Where models and their keys are written."""
    places = {}

    def note(path: tuple[str, ...], *tagged: Any) -> None:
        for one in tagged:
            place = _place(one)
            if place:
                places[path] = place
                return

    note((), value)
    for name, entry in value.items() if isinstance(value, Mapping) else ():
        note((str(name),), name, entry)
        for key, content in entry.items() if isinstance(entry, Mapping) else ():
            note((str(name), str(key)), key, content)
    return places


def _place(value: Any) -> str:
    """`group_vars/all.yml:7`, or nothing if Ansible does not know."""
    if Origin is not None:
        origin = Origin.get_tag(value)
        path, line = (origin.path, origin.line_num) if origin is not None else (None, None)
    else:
        path, line, _ = getattr(value, "ansible_pos", (None, None, None))
    if not path:
        return ""
    written = Path(str(path))
    shown = written.relative_to(Path.cwd()) if written.is_relative_to(Path.cwd()) else written
    return f"{shown}:{line}" if line else str(shown)
