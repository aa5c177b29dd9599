#!/usr/bin/python
"""Makes a host run what its deployment file says. One implementation of what a change is: `modelhost apply`."""

from __future__ import annotations

DOCUMENTATION = r"""
module: modelhost_deployment
short_description: Make a modelhost host run what a deployment says
description:
  - Hands a deployment file to C(modelhost apply) on the host, and waits until the host is so.
  - Everything is checked before anything changes. What is refused changes nothing.
  - A version that does not start is given up, and what was served before is served on. The task fails then, and
    RV(previous) is what brings the host back.
  - A host that does not run gets the file for its next start, checked as C(modelhost up) checks it.
  - Runs as the host's user, or as root.
options:
  deployment:
    description:
      - The whole text of the host's C(deployment.toml). At most 4 MiB.
    type: str
    required: true
  wait:
    description:
      - Whether to wait until the host is as it should be, or what should run was given up.
    type: bool
    default: true
  timeout_s:
    description:
      - How long the whole may take, checks included, in seconds. The command stops waiting shortly before, and is
        killed at the end. What was handed over by then goes on without it.
    type: float
    default: 900
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
    description: The prediction is made by C(modelhost apply --dry-run), which checks all that apply checks.
  diff_mode:
    support: full
    description: Shows the deployment file; RV(differences) is what changes on the host.
author:
  - The modelhost authors
"""

EXAMPLES = r"""
- name: Version 4 of churn, and back if it does not start
  block:
    - name: Apply
      modelhost_deployment:
        deployment: "{{ modelhost_fleet.hosts[inventory_hostname].deployment }}"
      register: applied
  rescue:
    - name: Bring the host back
      modelhost_deployment:
        deployment: "{{ applied.previous }}"
      when: applied.previous | default(none) is not none

- name: Hand a deployment over without waiting for it
  modelhost_deployment:
    deployment: "{{ lookup('file', 'deployment.toml') }}"
    wait: false
"""

RETURN = r"""
changed:
  description: Whether the file has other bytes, the host runs something else, or what had failed was started again.
  type: bool
  returned: always
running:
  description: Whether a host runs. None if that is not known.
  type: bool
  returned: always
file:
  description: The deployment file.
  type: str
  returned: always
previous:
  description:
    - What the file held before. Of a host that ran without one, a file that says what ran. None if there was nothing.
  type: str
  returned: always
differences:
  description: What changes on the host, one line for each model.
  type: list
  elements: str
  returned: always
  sample: ["churn: version 3 -> 4, processes 2 -> 4"]
generation:
  description: Of what the host should run. 0 if that is not known or the host does not run.
  type: int
  returned: always
converged:
  description: Whether the host became so. None if nobody waited.
  type: bool
  returned: always
retried:
  description: Nothing differs, and what had failed or was stopped by hand is started again.
  type: bool
  returned: always
problems:
  description: Why it was refused, one line each. Nothing has changed then.
  type: list
  elements: str
  returned: always
failures:
  description: Versions that did not start, each with the reason and the end of its log.
  type: list
  elements: str
  returned: always
states:
  description: Every version as it was seen last.
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
    reason: {description: Why it was given up or cannot serve., type: str, returned: always}
reasons:
  description: Version to the reason why it was given up or cannot serve, of those that have one.
  type: dict
  returned: always
  sample: {"churn version 4": "golden case 'a customer who stays' was answered otherwise"}
"""

import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.modelhost_client import (
    TEXT_MAX_BYTES,
    Failure,
    Ran,
    common_arguments,
    document_of,
    name_of,
    run,
)

SPARE_MAX_S = 10.0
"""Between the end of the command's own waiting and its being killed: it still has to say how things stand."""

SPARE_SHARE = 0.25


def arguments(params: dict[str, Any], *, check_mode: bool) -> list[str]:
    """The command line."""
    argv = [params["command"], "apply", "-", "--json", "--allow-stopped", "--config", params["config"]]
    if check_mode:
        argv.append("--dry-run")
    elif params["wait"]:
        spare_s = min(SPARE_MAX_S, SPARE_SHARE * params["timeout_s"])
        argv += ["--wait", "--timeout", f"{params['timeout_s'] - spare_s:g}"]
    return argv


def result_of(document: dict[str, Any], code: int, deployment: str) -> tuple[dict[str, Any], str]:
    """The module's result, and why it fails; empty: it does not."""
    states = document.get("models") or []
    written, retried = bool(document.get("written")), bool(document.get("retried"))
    result = {
        "changed": bool(document.get("changed")) or written or retried,
        "running": document.get("running"),
        "file": document.get("file") or "",
        "previous": document.get("previous"),
        "differences": document.get("differences") or [],
        "generation": document.get("generation") or 0,
        "converged": document.get("converged"),
        "retried": retried,
        "problems": document.get("problems") or [],
        "failures": document.get("failures") or [],
        "states": states,
        "reasons": {name_of(one): one["reason"] for one in states if one.get("reason")},
        "diff": diff_of(document, deployment) if written else {"before": "", "after": ""},
    }
    return result, failure_of(document, code)


def diff_of(document: dict[str, Any], deployment: str) -> dict[str, str]:
    """For `--diff`."""
    file = document.get("file") or "deployment.toml"
    before = document.get("previous") or ""
    return {"before_header": file, "after_header": file, "before": before, "after": deployment}


def failure_of(document: dict[str, Any], code: int) -> str:
    """Why the module fails, in words; empty if it does not."""
    if document.get("problems"):
        return "\n".join(["the deployment is refused, and nothing has changed:", *document["problems"]])
    if document.get("failures"):
        return "\n".join([*document["failures"], "what was served before is served on"])
    if document.get("error"):
        return str(document["error"])
    return f"modelhost apply ended with exit code {code}, and does not say why" if code else ""


def unknown(file: Path | None, previous: str | None) -> dict[str, Any]:
    """The result when the command did not say what came of it: what can be seen of the file."""
    return {
        "changed": file is not None and read_text(file) != previous,
        "running": None,
        "file": str(file or ""),
        "previous": previous,
        "differences": [],
        "generation": 0,
        "converged": None,
        "retried": False,
        "problems": [],
        "failures": [],
        "states": [],
        "reasons": {},
    }


def find_file(params: dict[str, Any], timeout_s: float) -> Path:
    """Where the deployment file is, or will be. Raises `Failure`, also with what is wrong with the settings."""
    ran = run([params["command"], "config", "--json", "--config", params["config"]], timeout_s)
    if ran.code == 2 and not ran.out.strip():
        raise Failure(f"the settings are wrong, and nothing has changed:\n{ran.err.strip()}")
    file = document_of(ran, "modelhost config").get("deployment_file")
    if not isinstance(file, str):
        raise Failure("modelhost config: expected a deployment_file, found none: a newer modelhost is needed")
    return Path(file)


def read_text(file: Path) -> str | None:
    """What a file holds; None if there is none, or it cannot be read."""
    try:
        with file.open("rb") as stream:
            return stream.read(TEXT_MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return None


def main() -> None:
    """Run as Ansible runs modules."""
    module = AnsibleModule(
        argument_spec={
            "deployment": {"type": "str", "required": True},
            "wait": {"type": "bool", "default": True},
            "timeout_s": {"type": "float", "default": 900.0},
            **common_arguments(),
        },
        supports_check_mode=True,
    )
    params = module.params
    deployment, timeout_s = params["deployment"], params["timeout_s"]
    if not 0 < timeout_s < float("inf"):
        module.fail_json(msg=f"timeout_s: expected a number of seconds above 0, received {timeout_s:g}")
    if len(deployment.encode()) > TEXT_MAX_BYTES:
        module.fail_json(
            msg=f"deployment: expected at most {TEXT_MAX_BYTES} bytes, received {len(deployment.encode())}"
        )
    deadline = time.monotonic() + timeout_s
    file = previous = None
    try:
        file = find_file(params, timeout_s)
        previous = read_text(file)
        ran: Ran = run(arguments(params, check_mode=module.check_mode), deadline - time.monotonic(), deployment)
        document = document_of(ran, "modelhost apply")
    except Failure as failure:
        result = unknown(file, previous)
        more = "; the file was written, and what was handed over goes on: see modelhost status"
        module.fail_json(msg=f"{failure}{more if result['changed'] else ''}", **result)
    result, failed = result_of(document, ran.code or 0, deployment)
    result["file"] = result["file"] or str(file)
    if result["previous"] is None:
        result["previous"] = previous
    if failed:
        module.fail_json(msg=failed, **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
