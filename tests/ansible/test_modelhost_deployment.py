"""`modelhost_deployment` against a command line that answers what each test says: every outcome, and every fault."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from module_runs import Stub, load, run_module, stub_in

from host.cli.changes import Outcome, VersionOutcome

module = load("modelhost_deployment")

OLD = '[[models]]\nname = "churn"\nversion = "3"\n'
NEW = '[[models]]\nname = "churn"\nversion = "4"\n'
STATE = {
    "name": "churn", "version": "4", "default": True, "state": "serving", "wanted": 2, "ready": 2, "pids": [7, 8],
    "reason": "",
}  # fmt: skip


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    """Give a command line whose host runs version 3."""
    made = stub_in(tmp_path)
    made.file.write_text(OLD)
    return made


def outcome(stub: Stub, **fields: Any) -> dict[str, Any]:
    """A document of `modelhost apply --json`."""
    told = {
        "running": True, "changed": True, "written": True, "retried": False, "generation": 7,
        "differences": ["churn: version 3 -> 4"], "converged": True, "failures": [], "problems": [], "error": "",
        "file": str(stub.file), "previous": OLD, "models": [STATE], **fields,
    }  # fmt: skip
    assert set(told) == set(Outcome.__struct_fields__)
    assert set(STATE) == set(VersionOutcome.__struct_fields__)
    return told


def applied(stub: Stub, **options: Any) -> dict[str, Any]:
    return run_module(module, command=stub.path, config="/etc/modelhost/m.toml", **{"deployment": NEW, **options})


# -- what came of it ----------------------------------------------------------------------------------------------
def test_a_change_is_told_with_states_and_a_difference_of_the_file(stub: Stub) -> None:
    stub.answers(apply={"document": outcome(stub)})
    result = applied(stub, diff=True)
    assert not result["failed"] and result["changed"] and result["converged"]
    assert result["differences"] == ["churn: version 3 -> 4"]
    assert (result["generation"], result["states"], result["reasons"]) == (7, [STATE], {})
    assert result["previous"] == OLD
    assert (result["diff"]["before"], result["diff"]["after"]) == (OLD, NEW)
    assert result["diff"]["before_header"] == str(stub.file)


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({"changed": False, "written": False, "differences": []}, False),
        ({"changed": False, "written": True, "differences": []}, True),  # a comment
        ({"changed": False, "written": False, "retried": True, "differences": []}, True),
        ({"changed": True, "written": False}, True),  # the file said so before, the host does it only now
    ],
)
def test_changed_is_what_the_file_or_the_host_became(stub: Stub, fields: dict[str, Any], changed: bool) -> None:
    stub.answers(apply={"document": outcome(stub, **fields)})
    result = applied(stub, diff=True)
    assert result["changed"] is changed
    assert bool(result["diff"]["after"]) is fields["written"]


def test_what_is_refused_is_said_whole_and_nothing_has_changed(stub: Stub) -> None:
    problems = [f"{stub.file}: models[{number}].version: expected ..." for number in range(300)]
    fields = {"changed": False, "written": False, "problems": problems, "differences": [], "file": "", "previous": None}
    stub.answers(apply={"document": outcome(stub, **fields, converged=None, models=[]), "code": 2})
    result = applied(stub)
    assert result["failed"] and not result["changed"]
    assert all(problem in result["msg"] for problem in problems)
    assert (result["file"], result["previous"]) == (str(stub.file), OLD)


def test_what_was_given_up_fails_with_reasons_and_the_way_back(stub: Stub) -> None:
    given_up = {**STATE, "state": "failed", "ready": 0, "pids": [], "reason": "no such weights"}
    old = {**STATE, "version": "3", "state": "replaced"}
    failure = "churn version 4: no such weights\n  Traceback ..."
    document = outcome(stub, converged=False, failures=[failure], models=[given_up, old])
    stub.answers(apply={"document": document, "code": 1})
    result = applied(stub)
    assert result["failed"] and result["changed"] and result["converged"] is False
    assert result["msg"] == f"{failure}\nwhat was served before is served on"
    assert result["reasons"] == {"churn version 4": "no such weights"}
    assert result["previous"] == OLD


def test_an_error_is_the_message(stub: Stub) -> None:
    document = outcome(stub, converged=False, error="no host runs in /run/m", running=False, models=[])
    stub.answers(apply={"document": document, "code": 1})
    result = applied(stub)
    assert (result["failed"], result["changed"], result["running"]) == (True, True, False)
    assert result["msg"] == "no host runs in /run/m"


def test_an_exit_code_without_a_reason_is_a_failure(stub: Stub) -> None:
    stub.answers(apply={"document": outcome(stub), "code": 3})
    assert applied(stub)["msg"] == "modelhost apply ended with exit code 3, and does not say why"


def test_a_host_that_does_not_run_is_told_of(stub: Stub) -> None:
    document = outcome(stub, running=False, converged=None, generation=0, models=[], previous=None)
    stub.answers(apply={"document": document})
    stub.file.unlink()
    result = applied(stub)
    assert (result["failed"], result["changed"], result["running"]) == (False, True, False)
    assert (result["converged"], result["previous"]) == (None, None)


# -- how it asks --------------------------------------------------------------------------------------------------
def test_the_command_gets_its_text_as_input_and_no_settings_of_the_environment(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELHOST_RUN_DIR", "/elsewhere")
    stub.answers(apply={"document": outcome(stub)})
    text = NEW + "# $(reboot) `reboot` ümlaut\n"
    applied(stub, deployment=text, timeout_s=60)
    (call,) = stub.calls("apply")
    expected = [
        "apply",
        "-",
        "--json",
        "--allow-stopped",
        "--config",
        "/etc/modelhost/m.toml",
        "--wait",
        "--timeout",
        "50",
    ]
    assert call["argv"] == expected
    assert call["stdin"] == text
    assert "MODELHOST_RUN_DIR" not in call["environ"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"check_mode": True}, ["--dry-run"]),
        ({"wait": False}, []),
        ({"check_mode": True, "wait": False}, ["--dry-run"]),
    ],
)
def test_check_mode_only_asks(stub: Stub, options: dict[str, Any], words: list[str]) -> None:
    stub.answers(apply={"document": outcome(stub, converged=None)})
    assert applied(stub, **options)["changed"]
    (call,) = stub.calls("apply")
    assert call["argv"][6:] == words


@pytest.mark.parametrize(("timeout_s", "waits"), [(1, "0.75"), (40, "30"), (100, "90"), (900, "890")])
def test_the_command_stops_waiting_before_it_is_killed(timeout_s: float, waits: str) -> None:
    params = {"command": "m", "config": "c", "wait": True, "timeout_s": timeout_s}
    assert module.arguments(params, check_mode=False)[-2:] == ["--timeout", waits]


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan")])
def test_a_timeout_that_is_none_is_refused(stub: Stub, timeout_s: float) -> None:
    result = applied(stub, timeout_s=str(timeout_s))
    assert result["failed"] and "timeout_s: expected" in result["msg"]
    assert stub.calls("config") == []


def test_a_deployment_that_is_too_large_is_refused(stub: Stub) -> None:
    stub.answers(apply={"document": outcome(stub)})
    assert not applied(stub, deployment="#" * module.TEXT_MAX_BYTES)["failed"]
    result = applied(stub, deployment="#" * (module.TEXT_MAX_BYTES + 1))
    assert result["failed"] and f"expected at most {module.TEXT_MAX_BYTES} bytes" in result["msg"]


# -- faults -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("writes", [False, True])
def test_a_command_that_does_not_end_is_killed(stub: Stub, writes: bool, closes: bool) -> None:
    files = {str(stub.file): NEW} if writes else {}
    stub.answers(apply={"hangs": True, "err": "looking at packages", "files": files, "closes": closes})
    for timeout_s in (1, 5, 20):
        begun = time.monotonic()
        result = applied(stub, timeout_s=timeout_s)
        assert time.monotonic() - begun < timeout_s + 40
        if "looking at packages" in result["msg"]:
            break
        # It was killed before it had come so far: something else had the processor.
        stub.file.write_text(OLD)
        stub.forget_calls()
    assert result["failed"] and result["changed"] is writes
    assert "did not end within" in result["msg"] and "was killed" in result["msg"]
    assert "looking at packages" in result["msg"]
    assert ("what was handed over goes on" in result["msg"]) is writes
    assert result["previous"] == OLD
    (call,) = stub.calls("apply")
    assert not Path(f"/proc/{call['pid']}").exists()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"out": "Segmentation fault"}, "expected a JSON document, received (exit code 0): Segmentation fault"),
        ({"out": "[]"}, "expected a JSON object, received (exit code 0): []"),
        ({"out": ""}, "expected a JSON document, received (exit code 0): nothing"),
        ({"out": '{"changed": tr', "code": 1}, 'expected a JSON document, received (exit code 1): {"changed": tr'),
        ({"err": "Error: No such option: --allow-stopped", "code": 2}, "(exit code 2): Error: No such option"),
        ({"out": "x" * 5000}, f"received (exit code 0): {'x' * 2000} ... (5000 characters)"),
    ],
)
def test_what_is_no_document_is_a_failure(stub: Stub, answer: dict[str, Any], message: str) -> None:
    stub.answers(apply=answer)
    result = applied(stub)
    assert result["failed"] and not result["changed"]
    assert message in result["msg"]
    assert result["previous"] == OLD


def test_a_command_that_is_not_there_is_a_failure(stub: Stub) -> None:
    Path(stub.path).unlink()
    result = applied(stub)
    assert (
        result["msg"] == f"{stub.path}: expected modelhost's command, found none: is modelhost installed on this host?"
    )
    assert not result["changed"]
    Path(stub.path).write_text("x")
    assert applied(stub)["msg"] == f"{stub.path}: cannot be run: Permission denied"


def test_settings_that_are_wrong_are_named(stub: Stub) -> None:
    stub.answers(config={"code": 2, "err": "/etc/modelhost/m.toml: prt: unknown key"})
    assert (
        applied(stub)["msg"]
        == "the settings are wrong, and nothing has changed:\n/etc/modelhost/m.toml: prt: unknown key"
    )
    stub.answers(config={"document": {"file": None}})
    assert "a newer modelhost is needed" in applied(stub)["msg"]
    assert stub.calls("apply") == []


# -- running commands ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("where", ["out", "err"])
@pytest.mark.parametrize(("size", "killed"), [(0, False), (999, False), (1000, False), (1001, True), (300_000, True)])
def test_a_command_may_say_so_much(stub: Stub, where: str, size: int, killed: bool) -> None:
    stub.answers(apply={where: "x" * size})
    ran = module.run([stub.path, "apply"], 20.0, output_max_bytes=1000)
    assert (ran.code is None) is killed
    assert (ran.why_killed == "said more than 1000 bytes") is killed
    assert len(getattr(ran, where)) == min(size, 1000)
