from __future__ import annotations

import pytest

from host.control.admin import is_loopback, is_of_this_host


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1:8081", True),
        ("127.0.0.1", True),
        ("localhost:8081", True),
        ("LOCALHOST", True),
        ("[::1]:8081", True),
        ("192.0.2.1", True),
        ("", False),
        ("rebound.example", False),
        ("rebound.example:8081", False),
        ("localhost.rebound.example", False),
        ("127.0.0.1.rebound.example", False),
        ("localhost@rebound.example", False),
        ("[::1", False),
        ("[x]", False),
    ],
)
def test_hosts_that_are_this_machine(host: str, ours: bool) -> None:
    assert is_of_this_host(host) is ours


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("0.0.0.0", False),  # noqa: S104 - compared, not bound
        ("::", False),
    ],
)
def test_addresses_that_only_this_machine_reaches(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback
