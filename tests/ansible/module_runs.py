"""Modules of `ansible/library` in this process, and a command line that answers what a test says."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import ansible.module_utils
from ansible.module_utils.testing import patch_module_args

ANSIBLE = Path(__file__).resolve().parents[2] / "ansible"

if str(ANSIBLE / "module_utils") not in ansible.module_utils.__path__:
    # As Ansible does with what stands beside a playbook.
    ansible.module_utils.__path__.append(str(ANSIBLE / "module_utils"))


def load(name: str, directory: str = "library") -> ModuleType:
    """Import a file below `ansible/` by its path: a module of the library, or what stands elsewhere."""
    spec = importlib.util.spec_from_file_location(name, ANSIBLE / directory / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_module(module: ModuleType, *, check_mode: bool = False, diff: bool = False, **options: Any) -> dict[str, Any]:
    """Run a module with these options; what it gives back, with `failed` in any case."""
    said = io.StringIO()
    arguments = {**options, "_ansible_check_mode": check_mode, "_ansible_diff": diff}
    with patch_module_args(arguments), contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        module.main()
    result: dict[str, Any] = json.loads(said.getvalue())
    return {"failed": False, **result}


STUB = """#!{python} -IS
import json, os, sys, time
from pathlib import Path
here = Path(__file__).parent
word = sys.argv[1]
calls = here / f"{{word}}.calls"
call = {{"argv": sys.argv[1:], "stdin": sys.stdin.read(), "pid": os.getpid(), "environ": sorted(os.environ)}}
with calls.open("a") as stream:
    stream.write(json.dumps(call) + "\\n")
answers = json.loads((here / "answers.json").read_text())[word]
answer = answers[min(len(calls.read_text().splitlines()), len(answers)) - 1]
for path, text in answer.get("files", {{}}).items():
    Path(path).write_text(text)
sys.stderr.write(answer.get("err", ""))
sys.stdout.write(answer.get("out", ""))
sys.stderr.flush()
sys.stdout.flush()
if answer.get("closes"):
    os.close(1)
    os.close(2)
while answer.get("hangs"):
    time.sleep(60)
os._exit(answer.get("code", 0))
"""


@dataclass(frozen=True)
class Stub:
    """A `modelhost` that answers each of its commands in turn, the last answer again and again."""

    directory: Path

    @property
    def path(self) -> str:
        """The command."""
        return str(self.directory / "modelhost")

    @property
    def file(self) -> Path:
        """The deployment file that it tells of."""
        return self.directory / "deployment.toml"

    def answers(self, **answers: Mapping[str, Any] | list[Mapping[str, Any]]) -> None:
        """What it answers, by command; a `document` is what it writes as JSON."""
        told = {"config": {"document": {"deployment_file": str(self.file)}}, **answers}
        plan = {
            word.replace("version", "--version"): [
                {**one, "out": json.dumps(one["document"])} if "document" in one else dict(one)
                for one in (given if isinstance(given, list) else [given])
            ]
            for word, given in told.items()
        }
        (self.directory / "answers.json").write_text(json.dumps(plan))

    def calls(self, word: str) -> list[dict[str, Any]]:
        """How it was called."""
        path = self.directory / f"{word}.calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def forget_calls(self) -> None:
        """Begin anew."""
        for path in self.directory.glob("*.calls"):
            path.unlink()


def stub_in(directory: Path) -> Stub:
    """Write the command line into a directory."""
    stub = Stub(directory)
    path = Path(stub.path)
    path.write_text(STUB.format(python=sys.executable))
    path.chmod(0o755)
    stub.answers()
    return stub


def specification_of(module: ModuleType) -> dict[str, Any]:
    """What a module passes to `AnsibleModule`."""
    passed: dict[str, Any] = {}

    class Caught(Exception):
        pass

    class Catching:
        def __init__(self, **options: Any) -> None:
            passed.update(options)
            raise Caught

    kept = module.AnsibleModule
    module.AnsibleModule = Catching  # type: ignore[attr-defined]
    try:
        with contextlib.suppress(Caught):
            module.main()
    finally:
        module.AnsibleModule = kept  # type: ignore[attr-defined]
    return passed


def names() -> list[str]:
    """Every module of the library."""
    return sorted(path.stem for path in (ANSIBLE / "library").glob("*.py"))


if __name__ == "__main__":
    # In a process of its own: `module_runs.py NAME`, the options as JSON on standard input.
    sys.stdout.write(json.dumps(run_module(load(sys.argv[1]), **json.load(sys.stdin))))
