#!/usr/bin/python
"""Says what runs on a modelhost host, from `modelhost status`."""

from __future__ import annotations

DOCUMENTATION = r"""
module: modelhost_info
short_description: Say what runs on a modelhost host
description:
  - Asks C(modelhost status) and C(modelhost --version) on the host. Changes nothing.
  - A host that does not run, or has no modelhost at all, is told of, and is no failure unless O(required) says so.
options:
  required:
    description:
      - Fail if no host runs, or nothing can be said of it.
    type: bool
    default: false
  timeout_s:
    description:
      - How long each of the two questions may take, in seconds.
    type: float
    default: 30
  command:
    description:
      - Modelhost's command on the host.
    type: path
    default: /opt/modelhost/current/bin/modelhost
  config:
    description:
      - The host's settings file.
    type: path
    default: /etc/modelhost/modelhost.toml
attributes:
  check_mode:
    support: full
    description: It only asks.
author:
  - The modelhost authors
"""

EXAMPLES = r"""
- name: What runs
  modelhost_info:
  register: now

- name: The version of churn that answers requests without one
  ansible.builtin.debug:
    msg: "{{ (now.models | selectattr('name', 'eq', 'churn') | selectattr('default') | first).version }}"
"""

RETURN = r"""
running:
  description: Whether a host runs; false if that is not known.
  type: bool
  returned: always
reason:
  description: Why nothing can be said of it; empty otherwise.
  type: str
  returned: always
release:
  description: The release of modelhost that is installed. None if none is.
  type: str
  returned: always
ready:
  description: Whether everything that is wanted is ready.
  type: bool
  returned: always
settled:
  description: Whether no change is under way. None if nothing can be said.
  type: bool
  returned: always
generation:
  description: Of what should run. None if nothing can be said.
  type: int
  returned: always
models:
  description: Every model version that is there or should be.
  type: list
  elements: dict
  returned: always
  contains:
    name: {description: Model., type: str, returned: always}
    version: {description: Version., type: str, returned: always}
    default: {description: Whether it answers requests without a version., type: bool, returned: always}
    state: {description: "C(serving), C(starting), C(failed), C(replaced) or C(leaving).", type: str, returned: always}
    wanted: {description: Processes that should run., type: int, returned: always}
    ready: {description: Processes that can serve., type: int, returned: always}
    pids: {description: Processes., type: list, elements: int, returned: always}
    reason: {description: Why it was given up or cannot serve; empty otherwise., type: str, returned: always}
    requests: {description: Requests that ended. None if no front knows of any., type: int, returned: always}
    failed: {description: Those of them that failed, with a status of 500 or more., type: int, returned: always}
    failed_percent: {description: Their share. None without requests., type: float, returned: always}
    waiting: {description: Requests that wait for their answer now., type: int, returned: always}
    p50_ms: {description: Half of the answers took at most so long. None without any., type: float, returned: always}
    p90_ms: {description: As above., type: float, returned: always}
    p99_ms: {description: As above., type: float, returned: always}
    deaths: {description: How often its processes died since the host started., type: int, returned: always}
    memory_bytes: {description: What its processes take together., type: int, returned: always}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.modelhost_client import (
    Failure,
    common_arguments,
    numbers_of,
    read_release,
    read_status,
)


def model_of(model: dict[str, Any]) -> dict[str, Any]:
    """One version, in short; what is not there is None."""
    slots = model.get("slots") or []
    return {
        **{key: model.get(key) for key in ("name", "version", "default", "state", "wanted", "ready")},
        "reason": model.get("reason") or "",
        "pids": [slot["pid"] for slot in slots if slot.get("pid")],
        **numbers_of(model.get("traffic")),
        "waiting": (model.get("traffic") or {}).get("waiting"),
        "deaths": sum(sum((slot.get("deaths") or {}).values()) for slot in slots),
        "memory_bytes": sum((slot.get("usage") or {}).get("memory_bytes", 0) for slot in slots),
    }


def info_of(document: dict[str, Any]) -> dict[str, Any]:
    """What `modelhost status --json` says, in a form that stays."""
    return {
        "running": bool(document.get("running")),
        "reason": document.get("reason") or "",
        "ready": bool(document.get("ready")),
        "settled": document.get("settled"),
        "generation": document.get("generation"),
        "models": [model_of(model) for model in document.get("models") or []],
    }


def main() -> None:
    """Run as Ansible runs modules."""
    module = AnsibleModule(
        argument_spec={
            "required": {"type": "bool", "default": False},
            "timeout_s": {"type": "float", "default": 30.0},
            **common_arguments(),
        },
        supports_check_mode=True,
    )
    params = module.params
    release = None
    try:
        release = read_release(params["command"], params["timeout_s"])
        info = info_of(read_status(params["command"], params["config"], params["timeout_s"]))
    except Failure as failure:
        info = info_of({"running": False, "reason": str(failure)})
    if params["required"] and info["reason"]:
        module.fail_json(msg=info["reason"], release=release, **info)
    module.exit_json(changed=False, release=release, **info)


if __name__ == "__main__":
    main()
