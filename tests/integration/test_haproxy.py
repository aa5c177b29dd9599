"""The haproxy role's configuration in a real HAProxy, with fake hosts behind it: who is asked, and what is lost."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from balancing import Balancer, FakeHost, Load, ask
from hosts import RunningHost, tensors, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

MODELS = {
    "A": {"hosts": {"h1": {"processes": 2}, "h2": {"processes": 2}}, "retry": True, "timeout_ms": 2000},
    "B": {"hosts": {"h2": {"processes": 1}, "h3": {"processes": 1}}, "retry": True, "timeout_ms": 2000},
    "once": {"hosts": {"h1": {"processes": 1}, "h3": {"processes": 1}}, "retry": False, "timeout_ms": 2000},
}


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[dict[str, FakeHost]]:
    """Give three hosts, each with the models that are its own."""
    with ExitStack() as made:
        found = {}
        for name in ("h1", "h2", "h3"):
            host = FakeHost(name, [model for model, it in MODELS.items() if name in it["hosts"]], tmp_path)
            made.callback(host.stop)
            host.start()
            found[name] = host
        yield found


@pytest.fixture
def balancer(hosts: dict[str, FakeHost], tmp_path: Path) -> Iterator[Balancer]:
    """Give a balancer before them."""
    with Balancer(tmp_path, hosts, MODELS) as running:
        yield running


def test_requests_go_where_their_model_is(balancer: Balancer, hosts: dict[str, FakeHost]) -> None:
    for path in ("/v2/models/A/infer", "/v2/models/A/versions/3/infer", "/v1/models/A:predict", "/v2/models/%41/infer"):
        found = {json.loads(ask(balancer.port, "POST", path, b"{}")[2])["host"] for _ in range(4)}
        assert found == {"h1", "h2"}, path
    found = {json.loads(ask(balancer.port, "POST", "/v2/models/B/infer", b"{}")[2])["host"] for _ in range(4)}
    assert found == {"h2", "h3"}
    assert all(known for host in hosts.values() for *_, known in host.asked())
    status, headers, body = ask(balancer.port, "POST", "/v2/models/nobody/infer", b"{}")
    assert (status, headers["content-type"]) == (404, "application/json")
    assert json.loads(body) == {
        "error": "unknown model 'nobody': no host of the fleet runs it",
        "code": "UNKNOWN_MODEL",
    }


# -- changes ----------------------------------------------------------------------------------------------------
def test_a_second_run_changes_nothing(balancer: Balancer) -> None:
    assert balancer.changed() == set()
    assert balancer.changed("--check") == set()


def test_weights_change_without_a_reload(balancer: Balancer) -> None:
    worker = balancer.worker()
    with Load(balancer.port, "/v2/models/A/infer").running() as load:
        load.wait_for(100)
        before = load.shares()
        assert abs(before["h1"] - before["h2"]) <= 4
        balancer.models["A"]["hosts"]["h1"]["processes"] = 4
        tasks = {"Write the configuration", "Set the servers' weights"}
        assert balancer.changed("--check") == tasks
        assert (balancer.weight("model_A", "h1"), balancer.changed("--check")) == (2, tasks), "nothing was done"
        assert balancer.changed() == tasks
        assert balancer.weight("model_A", "h1") == 4
        changed_s = time.monotonic()
        load.wait_for(300)
    after = load.shares(changed_s)
    assert after["h1"] / after["h2"] == pytest.approx(2.0, abs=0.15)
    assert load.failed() == []
    assert balancer.worker() == worker
    assert balancer.changed() == set()
    balancer.stop()  # and it is so after a start, too
    balancer.start()
    assert balancer.weight("model_A", "h1") == 4


def test_a_new_model_is_a_reload_that_loses_nothing(balancer: Balancer, hosts: dict[str, FakeHost]) -> None:
    worker, master = balancer.worker(), balancer.pid
    balancer.models["C"] = {"hosts": {"h1": {"processes": 1}}}
    with Load(balancer.port, "/v2/models/A/infer", clients=8).running() as load:
        load.wait_for(100)
        checked = balancer.changed("--check")
        assert balancer.worker() == worker
        assert balancer.changed() == checked | {"Reload HAProxy by its command"} - {"Let every server have requests"}
        load.wait_for(200)
    assert load.failed() == []
    assert balancer.worker() != worker
    assert balancer.pid == master
    assert ask(balancer.port, "POST", "/v2/models/C/infer", b"{}")[0] == 503, "h1 has no such model yet"
    assert not any(model == "C" for host in hosts.values() for _, _, model, _ in host.asked())
    assert balancer.changed() == set()


def test_a_reload_that_an_earlier_run_did_not_come_to_is_made_up_for(balancer: Balancer) -> None:
    worker = balancer.worker()
    balancer.models["C"] = {"hosts": {"h1": {"processes": 1}}}
    reload = balancer.variables()["haproxy_reload_argv"]
    balancer.settings["haproxy_reload_argv"] = ["/bin/false"]
    balancer.play(fails=True)
    assert balancer.worker() == worker
    balancer.settings["haproxy_reload_argv"] = reload
    assert balancer.changed() == {"Decide whether HAProxy has to load it", "Reload HAProxy by its command"}
    assert balancer.worker() != worker


def test_a_configuration_that_haproxy_refuses_is_not_written(balancer: Balancer) -> None:
    worker, before = balancer.worker(), balancer.config.read_text()
    balancer.settings["haproxy_stats_address"] = "no address"
    assert "missing port specification in 'no'" in balancer.play(fails=True)
    assert balancer.config.read_text() == before
    assert balancer.worker() == worker


# -- drained hosts ----------------------------------------------------------------------------------------------
def test_a_drained_host_finishes_what_it_has_and_gets_nothing_new(
    balancer: Balancer, hosts: dict[str, FakeHost]
) -> None:
    with Load(balancer.port, "/v2/models/A/infer?sleep_s=0.3", clients=8).running() as load:
        load.wait_for(16)
        result = balancer.module(server="h1", state="drain", wait_until="idle", timeout_s=20)
        drained_s = time.monotonic()
        assert result["changed"]
        assert {(one["backend"], one["state"], one["sessions"]) for one in result["servers"]} == {
            ("model_A", "drain", 0),
            ("model_once", "drain", 0),
            ("modelhost_hosts", "drain", 0),
        }
        assert 0.0 < result["waited_s"] < 20.0
        load.wait_for(16)
        assert not [when for when, *_ in hosts["h1"].asked() if when > drained_s]
        assert not balancer.module(server="h1", state="drain", wait_until="idle")["changed"]
        assert balancer.module(server="h1", state="ready", wait_until="up", check=True)["changed"]
        assert balancer.module(server="h1", state="ready", wait_until="up")["changed"]
        back_s = time.monotonic()
        load.wait_for(32)
        assert [when for when, *_ in hosts["h1"].asked() if when > back_s]
    assert load.failed() == []


def test_a_reload_keeps_drained_hosts_and_what_is_down(balancer: Balancer, hosts: dict[str, FakeHost]) -> None:
    hosts["h3"].kill()
    until(lambda: balancer.status("model_B", "h3") == "DOWN", "h3 is down")
    balancer.module(server="h1", state="drain")
    balancer.models["C"] = {"hosts": {"h2": {"processes": 1}}}
    balancer.models["A"]["hosts"]["h2"]["processes"] = 7
    assert "Reload HAProxy by its command" in balancer.changed("--tags", "update")
    assert balancer.status("model_B", "h3") == "DOWN", "at once, before a check of the new worker"
    assert {balancer.status(row, "h1") for row in ("model_A", "model_once", "modelhost_hosts")} == {"DRAIN"}
    assert balancer.weight("model_A", "h2") == 7
    assert balancer.changed("--tags", "update") == set()
    assert balancer.changed() == {"Let every server have requests"}
    assert balancer.status("model_A", "h1") == "UP"


def test_a_start_begins_with_every_host(balancer: Balancer) -> None:
    balancer.module(server="h1", state="drain")
    balancer.models["C"] = {"hosts": {"h2": {"processes": 1}}}
    balancer.changed("--tags", "update")
    assert balancer.status("model_A", "h1") == "DRAIN"
    balancer.stop()
    balancer.start()
    assert balancer.status("model_A", "h1") == "UP"


def test_hosts_of_the_list_stay_drained(balancer: Balancer) -> None:
    worker = balancer.worker()
    balancer.settings["haproxy_drained"] = ["h1"]
    assert balancer.changed() == {"Write the configuration", "Set the servers' weights"}
    with Load(balancer.port, "/v2/models/A/infer").running() as load:
        load.wait_for(20)
    assert set(load.shares()) == {"h2"}
    balancer.stop()
    balancer.start()
    with Load(balancer.port, "/v2/models/A/infer").running() as load:
        load.wait_for(20)
    assert set(load.shares()) == {"h2"}
    balancer.settings["haproxy_drained"] = []
    assert balancer.changed() == {"Write the configuration", "Set the servers' weights"}
    assert balancer.worker() != worker, "a start, not a reload"


def test_a_host_that_moves_is_asked_at_its_new_port(balancer: Balancer, hosts: dict[str, FakeHost]) -> None:
    hosts["h1"].move()
    until(lambda: balancer.status("model_A", "h1") == "DOWN", "h1 is down")
    balancer.changed()
    until(lambda: balancer.status("model_A", "h1") == "UP", "h1 is up at its new port")


# -- hosts that are lost ----------------------------------------------------------------------------------------
LOSSES = 5
"""So often a host is lost, at most. Where something else has the processors just then, answers take longer, or the host
has answered everything before it is killed; what may not be lost is not lost each time."""


def both_were_asked(hosts: dict[str, FakeHost], load: Load) -> set[str]:
    """The requests of a load that were sent to h1 and to h2."""
    ours = {one.request for one in load.outcomes}
    first, second = ({request for _, request, *_ in hosts[name].asked()} for name in ("h1", "h2"))
    return ours & first & second


def bring_back(balancer: Balancer, host: FakeHost, backend: str) -> None:
    """Start a host that was killed."""
    host.start()
    until(lambda: balancer.status(backend, host.name) == "UP", f"{host.name} is back")


def test_a_host_that_dies_fails_nothing(balancer: Balancer, hosts: dict[str, FakeHost]) -> None:
    for _ in range(LOSSES):
        with Load(balancer.port, "/v2/models/A/infer?sleep_s=0.2", clients=8).running() as load:
            load.wait_for(16)
            until(lambda: balancer.sessions("model_A", "h1") > 1, "h1 has requests in hand")
            hosts["h1"].kill()
            killed_s = time.monotonic()
            until(lambda: balancer.status("model_A", "h1") == "DOWN", "h1 is down")
            down_s = time.monotonic()
            load.wait_for(24)
            hosts["h1"].start()
            until(lambda: balancer.status("model_A", "h1") == "UP", "h1 is back by itself")
            back_s = time.monotonic()
            load.wait_for(24)
        assert load.failed() == []
        assert load.shares(back_s)["h1"] > 0
        again = both_were_asked(hosts, load)
        longest_s = max(one.took_s for one in load.outcomes)
        if again and down_s - killed_s < 2.0 and longest_s < 1.0:
            break
    assert again, "what it had was sent to the other one"
    assert down_s - killed_s < 2.0
    assert longest_s < 1.0


def test_a_host_that_answers_no_more_fails_nothing(balancer: Balancer, hosts: dict[str, FakeHost]) -> None:
    for _ in range(LOSSES):
        with Load(balancer.port, "/v2/models/A/infer", clients=8).running() as load:
            load.wait_for(50)
            hosts["h1"].send_signal(signal.SIGSTOP)
            stopped_s = time.monotonic()
            until(lambda: balancer.status("model_A", "h1").startswith("DOWN"), "h1 is down")
            down_s = time.monotonic()
            load.wait_for(50)
            hosts["h1"].send_signal(signal.SIGCONT)
            until(lambda: balancer.status("model_A", "h1") == "UP", "h1 is back by itself")
        assert load.failed() == []
        longest_s = max(one.took_s for one in load.outcomes if one.began_s > down_s)
        if down_s - stopped_s < 4.0 and longest_s < 1.0:
            break
    assert down_s - stopped_s < 4.0
    assert longest_s < 1.0


def test_a_model_that_must_not_be_retried_is_sent_once(balancer: Balancer, hosts: dict[str, FakeHost]) -> None:
    for _ in range(LOSSES):
        with Load(balancer.port, "/v2/models/once/infer?sleep_s=0.2", clients=8).running() as load:
            load.wait_for(16)
            until(lambda: balancer.sessions("model_once", "h1") > 1, "h1 has requests in hand")
            hosts["h1"].kill()
            until(lambda: balancer.status("model_once", "h1") == "DOWN", "h1 is down")
            down_s = time.monotonic()
            load.wait_for(24)
        asked = [request for host in hosts.values() for _, request, *_ in host.asked()]
        assert len(asked) == len(set(asked))
        if failed := load.failed():
            break
        bring_back(balancer, hosts["h1"], "model_once")
    assert {one.status for one in failed} <= {0, 502}
    assert 1 <= len(failed) <= 8, "what it had in hand, and nothing that came later"
    assert max(one.began_s for one in failed) < down_s


# -- bodies -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [0, 40_000, 60_000])
def test_what_fits_into_a_buffer_is_sent_again(balancer: Balancer, hosts: dict[str, FakeHost], size: int) -> None:
    for _ in range(LOSSES):
        load = Load(balancer.port, "/v2/models/A/infer?sleep_s=0.2", clients=8, body=b"x" * size)
        before = len(hosts["h1"].asked())
        with load.running():
            until(lambda: len(hosts["h1"].asked()) > before + 1, "h1 has requests in hand")  # noqa: B023
            hosts["h1"].kill()
            load.wait_for(24)
        assert load.failed() == []
        if again := both_were_asked(hosts, load):
            break
        bring_back(balancer, hosts["h1"], "model_A")
    assert again, "sent again"


def test_what_does_not_fails_with_its_host_and_only_then(balancer: Balancer, hosts: dict[str, FakeHost]) -> None:
    for _ in range(LOSSES):
        load = Load(balancer.port, "/v2/models/A/infer?sleep_s=0.2", clients=8, body=b"x" * 200_000)
        with load.running():
            until(lambda: balancer.sessions("model_A", "h1") > 1, "h1 has requests in hand")
            hosts["h1"].kill()
            killed_s = time.monotonic()
            load.wait_for(24)
        if failed := load.failed():
            break
        bring_back(balancer, hosts["h1"], "model_A")
    assert {one.status for one in failed} <= {0, 502}
    assert 1 <= len(failed) <= 8
    assert max(one.began_s for one in failed) < killed_s, "who comes later is sent to the other one"
    assert {json.loads(ask(balancer.port, "POST", "/v2/models/A/infer", b"x" * 200_000)[2])["received"]} == {200_000}


def test_bodies_are_bounded(balancer: Balancer, hosts: dict[str, FakeHost]) -> None:
    balancer.settings["haproxy_max_body_bytes"] = 1000
    balancer.play()
    for size, status in ((999, 200), (1000, 200), (1001, 413)):
        answer = ask(balancer.port, "POST", "/v2/models/A/infer", b"x" * size)
        assert answer[0] == status, size
    assert json.loads(answer[2]) == {"error": "expected a body of at most 1000 bytes", "code": "BODY_TOO_LARGE"}


# -- answers of its own, headers --------------------------------------------------------------------------------
def test_errors_have_the_form_of_the_hosts(balancer: Balancer, hosts: dict[str, FakeHost]) -> None:
    for host in hosts.values():
        host.send_signal(signal.SIGUSR1)
    until(lambda: balancer.status("model_A", "h1") == balancer.status("model_A", "h2") == "DOWN", "A is nowhere")
    status, headers, body = ask(balancer.port, "POST", "/v2/models/A/infer", b"{}")
    assert (status, headers["content-type"], headers["retry-after"]) == (503, "application/json", "1")
    assert json.loads(body)["code"] == "MODEL_NOT_READY"
    assert ask(balancer.port, "GET", "/v1/features")[0] == 200, "what is no model's is answered all the same"
    status, _, body = ask(balancer.port, "GET", "/v2/health/ready")
    assert (status, json.loads(body)) == (503, {"live": True, "ready": False})
    for host in hosts.values():
        host.send_signal(signal.SIGUSR2)
    until(lambda: ask(balancer.port, "GET", "/v2/health/ready")[0] == 200, "every model has a host")


@pytest.mark.parametrize("name", ["%22,%22code%22:%22", "a%0d%0ab", "%C3%A9", "x" * 5000, ".."])
def test_names_of_models_that_are_none(balancer: Balancer, name: str) -> None:
    status, headers, body = ask(balancer.port, "POST", f"/v2/models/{name}/infer", b"{}")
    assert (status, headers["content-type"]) == (404, "application/json")
    document = json.loads(body)
    assert (set(document), document["code"]) == ({"error", "code"}, "UNKNOWN_MODEL")
    assert len(body) < 1000


def test_a_slow_host_is_answered_for(balancer: Balancer) -> None:
    status, headers, body = ask(balancer.port, "POST", "/v2/models/once/infer?sleep_s=6", b"{}")
    assert (status, headers["content-type"]) == (504, "application/json")
    assert json.loads(body)["code"] == "DEADLINE_EXCEEDED"


def test_headers(balancer: Balancer) -> None:
    def seen(**headers: str) -> dict[str, str]:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        found: dict[str, str] = json.loads(ask(balancer.port, "POST", "/v2/models/A/infer", b"{}", given)[2])["headers"]
        return found

    first, second = seen(), seen()
    assert len(first["x-request-id"]) == 36
    assert first["x-request-id"] != second["x-request-id"]
    assert seen(X_Request_Id="mine")["x-request-id"] == "mine"
    forged = seen(X_Forwarded_For="10.9.9.9", X_Forwarded_Proto="https", X_Forwarded_Host="elsewhere")
    assert (forged["x-forwarded-for"], forged["x-forwarded-proto"]) == ("127.0.0.1", "http")
    assert forged["x-forwarded-host"] == f"127.0.0.1:{balancer.port}"
    balancer.settings["haproxy_trusted_proxies"] = ["127.0.0.0/8"]
    balancer.play()
    believed = seen(X_Forwarded_For="10.9.9.9", X_Forwarded_Proto="https", X_Forwarded_Host="elsewhere")
    assert believed["x-forwarded-for"] == "10.9.9.9, 127.0.0.1"
    assert (believed["x-forwarded-proto"], believed["x-forwarded-host"]) == ("https", "elsewhere")


def test_statistics(balancer: Balancer) -> None:
    status, _, body = ask(balancer.statistics_port, "GET", "/metrics")
    assert status == 200
    assert b'haproxy_server_weight{proxy="model_A",server="h1"} 2' in body
    assert b"h3" in ask(balancer.statistics_port, "GET", "/")[2]
    assert stat.S_IMODE(balancer.socket.stat().st_mode) == 0o600


# -- TLS --------------------------------------------------------------------------------------------------------
def test_tls(balancer: Balancer, tmp_path: Path) -> None:
    balancer.settings["haproxy_certificate"] = str(make_certificate(tmp_path))
    tasks = balancer.changed()
    assert {"Copy the certificate", "Reload HAProxy by its command"} <= tasks
    [present] = (tmp_path / "etc").glob("*.pem")
    assert stat.S_IMODE(present.stat().st_mode) == 0o600
    assert balancer.changed() == set()

    def speak(version: ssl.TLSVersion, protocols: list[str]) -> str | None:
        context = ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))
        context.set_alpn_protocols(protocols)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = version
        with (
            socket.create_connection(("127.0.0.1", balancer.port), 10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            if protocols == ["http/1.1"]:
                secured.sendall(b"POST /v2/models/A/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
                answer = secured.recv(65536)
                assert answer.startswith(b"HTTP/1.1 200 ") and b'"x-forwarded-proto": "https"' in answer
            return secured.selected_alpn_protocol()

    assert speak(ssl.TLSVersion.TLSv1_3, ["http/1.1"]) == "http/1.1"
    assert speak(ssl.TLSVersion.TLSv1_2, ["http/1.1"]) == "http/1.1"
    assert speak(ssl.TLSVersion.TLSv1_3, ["h2", "http/1.1"]) == "h2"
    worker = balancer.worker()
    written = balancer.config.read_text()
    (tmp_path / "both.pem").write_text("no certificate\n")
    assert "failed to validate" in balancer.play(fails=True)
    assert (balancer.config.read_text(), balancer.worker()) == (written, worker)
    balancer.stop()  # and a start has what was there
    balancer.start()
    assert speak(ssl.TLSVersion.TLSv1_3, ["http/1.1"]) == "http/1.1"
    worker = balancer.worker()
    make_certificate(tmp_path)  # a renewed one
    assert {"Remove certificates of before", "Reload HAProxy by its command"} <= balancer.changed()
    assert balancer.worker() != worker
    [renewed] = (tmp_path / "etc").glob("*.pem")
    assert renewed != present
    assert renewed.name in balancer.config.read_text()
    assert speak(ssl.TLSVersion.TLSv1_3, ["http/1.1"]) == "http/1.1"


def make_certificate(directory: Path) -> Path:
    """Make a certificate for localhost; give the file of certificate and key."""
    key, certificate, both = (directory / name for name in ("key.pem", "certificate.pem", "both.pem"))
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    return both


# -- what is refused --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"haproxy_drained": ["h9"]}, "haproxy_drained: expected names of haproxy_fleet.hosts, received h9"),
        ({"haproxy_fleet": {"hosts": {}, "models": {"A": {"hosts": {"h9": {}}}}}}, "models.A.hosts: expected names of"),
        ({"haproxy_fleet": {"hosts": {}, "models": {"a b": {"hosts": {}}}}}, "received a b"),
        ({"haproxy_fleet": {"hosts": {"h1": {"address": "x y", "port": 1}}, "models": {}}}, "haproxy_fleet.hosts.h1"),
        ({"haproxy_fleet": {"hosts": {"h1": {"address": "x", "port": 0}}, "models": {}}}, "haproxy_fleet.hosts.h1"),
        ({"haproxy_keepalive_s": 300}, "longer than haproxy_keepalive_s (300)"),
        ({"haproxy_balance": "fair"}, "haproxy_balance must be one of"),
    ],
)
def test_what_cannot_be_balanced(tmp_path: Path, settings: dict[str, Any], expected: str) -> None:
    with closing(Balancer(tmp_path, {}, {})) as balancer:
        balancer.settings.update(settings)
        said = " ".join(balancer.play(fails=True).split())
        assert expected in said, said
        assert not balancer.config.exists()


# -- a real host ---------------------------------------------------------------------------------------------------
def test_a_real_host_is_served_as_without_a_balancer(everything: Path, host: RunningHost, tmp_path: Path) -> None:
    models = {name: {"hosts": {"h1": {"processes": 1}}} for name in host.packages}
    with Balancer(tmp_path, {"h1": host}, models) as balancer:
        until(lambda: {row["status"] for row in balancer.servers()} == {"UP"}, "every model is ready")
        body = json.dumps(tensors(x=("FP64", [1, 1], [1.0]))).encode()
        for method, path in [
            ("GET", "/v2/health/live"),
            ("GET", "/v2/models/digits"),
            ("GET", "/v2/models/digits/versions/1/ready"),
            ("GET", "/v2/models/digits/nothing"),
            ("GET", "/v1/models"),
            ("POST", "/v2/repository/index"),
            ("POST", "/v2/models/digits/infer"),
            ("POST", "/v2/models/digits/versions/99/infer"),
            ("DELETE", "/v2/models/digits/infer"),
        ]:
            sent = body if method == "POST" else b""
            status, headers, answer = ask(host.port, method, path, sent)
            balanced = ask(balancer.port, method, path, sent)
            assert (balanced[0], balanced[1].get("content-type")) == (status, headers.get("content-type")), path
            assert balanced[2] == answer, path
        given = {"X-Request-Id": "7c0a4f51-2e"}
        assert ask(balancer.port, "GET", "/v2/models/digits", b"", given)[1]["x-request-id"] == "7c0a4f51-2e"
        status, _, answer = ask(balancer.port, "POST", "/v2/models/unknown/infer", body)
        assert status == ask(host.port, "POST", "/v2/models/unknown/infer", body)[0]
        assert json.loads(answer)["code"] == host.call("POST", "/v2/models/unknown/infer", body).document["code"]
