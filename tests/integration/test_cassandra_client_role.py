"""The role cassandra_client writes what modelhost reads, keeps secrets to their owner, and restarts little."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Any

import pytest
from roles import changed_tasks, run_playbook

from host.config.features import CassandraStore, read_features

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

VIEWS = """
[[views]]
name = "user_stats"
keyspace = "features"

[[views.keys]]
column = "user_id"
datatype = "INT64"

[[views.columns]]
name = "karma"
datatype = "FP64"
"""


class Client:
    """The role in a directory; `features.toml` is what the role modelhost would write."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.secrets = directory / "secrets"
        self.features = directory / "features.toml"
        self.restarts = directory / "restarts"
        for name in ("ca", "certificate", "key"):
            (directory / f"{name}.source").write_text(f"{name}\n")
        (directory / "views.toml").write_text(VIEWS)
        command = directory / "modelhost"
        command.write_text(f'#!/bin/sh\necho "$@" >> {self.restarts}\n')
        command.chmod(0o755)
        (directory / "run").mkdir()
        (directory / "play.yml").write_text(
            "- hosts: localhost\n  connection: local\n  gather_facts: false\n  roles: [cassandra_client]\n"
            "  post_tasks:\n    - ansible.builtin.copy:\n"
            f'        content: "{{{{ cassandra_client_features }}}}"\n        dest: {self.features}\n'
        )
        self.variables: dict[str, Any] = {
            "cassandra_client_contact_points": ["10.0.0.1", "10.0.0.2"],
            "cassandra_client_local_datacenter": "dc1",
            "cassandra_client_username": "modelhost",
            "cassandra_client_password": 'a "secret" \\',
            "cassandra_client_tls": True,
            "cassandra_client_tls_ca": str(directory / "ca.source"),
            "cassandra_client_tls_certificate": str(directory / "certificate.source"),
            "cassandra_client_tls_key": str(directory / "key.source"),
            "cassandra_client_settings": {"consistency": "LOCAL_QUORUM", "concurrency": 64},
            "cassandra_client_views_file": str(directory / "views.toml"),
            "cassandra_client_directory": str(self.secrets),
            "cassandra_client_owner": getpass.getuser(),
            "cassandra_client_modelhost": str(command),
            "cassandra_client_run_dir": str(directory / "run"),
        }

    def run(self, *arguments: str, fails: bool = False) -> str:
        return run_playbook(self.directory, self.variables, *arguments, fails=fails)


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path)


def test_modelhost_reads_what_it_writes(client: Client) -> None:
    (client.directory / "run" / "control.sock").touch()
    said = client.run("--diff", "-v")
    assert "secret" not in said.replace(str(client.secrets), "")
    [store] = read_features(client.features).stores
    assert isinstance(store, CassandraStore)
    assert (store.name, store.contact_points, store.local_datacenter) == ("cassandra", ("10.0.0.1", "10.0.0.2"), "dc1")
    assert (store.consistency, store.concurrency, store.username) == ("LOCAL_QUORUM", 64, "modelhost")
    assert store.password_file is not None and store.tls is not None
    assert Path(store.password_file).read_text() == 'a "secret" \\\n'
    for path, text in ((store.tls.ca, "ca\n"), (store.tls.certificate, "certificate\n"), (store.tls.key, "key\n")):
        assert path is not None and Path(path).read_text() == text
    assert [view.name for view in read_features(client.features).views] == ["user_stats"]
    assert client.secrets.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in client.secrets.iterdir()} == {0o600}
    assert not client.restarts.exists(), "its host has no such store yet"

    assert changed_tasks(client.run()) == set()
    client.variables["cassandra_client_password"] = "another"  # noqa: S105
    assert changed_tasks(client.run("--check")) >= {"Write the password"}
    assert not client.restarts.exists()
    assert changed_tasks(client.run()) == {"Write the password", "Restart feature processes"}
    assert client.restarts.read_text() == f"restart features --run-dir={client.directory / 'run'}\n"


def test_relative_paths_begin_at_the_inventory(client: Client) -> None:
    inventory = client.directory / "inventory"
    inventory.mkdir()
    (inventory / "hosts").write_text("localhost\n")
    for option in ("tls_ca", "tls_certificate", "tls_key", "views_file"):
        source = Path(client.variables[f"cassandra_client_{option}"])
        client.variables[f"cassandra_client_{option}"] = source.rename(inventory / source.name).name
    run_playbook(client.directory, client.variables, inventory=str(inventory / "hosts"))
    assert {path.name for path in client.secrets.iterdir()} == {"password", "ca.pem", "certificate.pem", "key.pem"}
    assert [view.name for view in read_features(client.features).views] == ["user_stats"]


def test_the_least_that_it_needs(client: Client) -> None:
    words = ("contact_points", "directory", "owner", "run_dir", "modelhost")
    client.variables = {
        name: value for name, value in client.variables.items() if name.removeprefix("cassandra_client_") in words
    }
    client.run()
    [store] = read_features(client.features).stores
    assert isinstance(store, CassandraStore)
    assert (store.username, store.tls, store.local_datacenter) == (None, None, None)
    assert list(client.secrets.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cassandra_client_contact_points": []}, "expected addresses in cassandra_client_contact_points"),
        ({"cassandra_client_username": ""}, "a password without a user"),
        ({"cassandra_client_password": ""}, "a user without a password"),
        ({"cassandra_client_tls": False}, "cassandra_client_tls where there are certificates"),
        ({"cassandra_client_tls_key": ""}, "expected cassandra_client_tls_certificate and cassandra_client_tls_key"),
        ({"modelhost_extras": ["worker"]}, "modelhost_extras: expected cassandra among them, received worker"),
    ],
)
def test_what_does_not_fit_together(client: Client, changes: dict[str, Any], expected: str) -> None:
    client.variables.update(changes)
    said = client.run(fails=True)
    assert expected in " ".join(said.split()), json.dumps(said)
    assert not client.secrets.exists()
