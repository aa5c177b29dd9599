"""What the drivers are told, and the one future of theirs that nobody may answer twice. No cluster."""

from __future__ import annotations

import asyncio
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest

from feature_io.stores import StoreUnavailable
from feature_io.stores.cassandra import CassandraFeatureStore
from feature_io.stores.drivers import Refused, Unanswered, acsylla_driver, aiocassandra_driver
from host.config.features import CassandraStore, Tls
from host.protocol.errors import ConfigError

CA = "/etc/ssl/certs/ca-certificates.crt"


def config(**options: Any) -> CassandraStore:
    return CassandraStore(**{"name": "s", "contact_points": ("10.0.0.1", "10.0.0.2"), **options})


def test_aiocassandra_is_told_where_and_how_to_ask() -> None:
    from cassandra import ConsistencyLevel
    from cassandra.policies import DCAwareRoundRobinPolicy, TokenAwarePolicy

    arguments = aiocassandra_driver.cluster_arguments(
        config(port=9999, consistency="LOCAL_QUORUM", local_datacenter="west", connect_timeout_ms=2500), 10.0
    )
    (profile,) = arguments["execution_profiles"].values()
    assert (arguments["contact_points"], arguments["port"]) == (["10.0.0.1", "10.0.0.2"], 9999)
    assert arguments["connect_timeout"] == arguments["control_connection_timeout"] == profile.request_timeout == 2.5
    assert profile.consistency_level == ConsistencyLevel.LOCAL_QUORUM
    assert isinstance(profile.load_balancing_policy, TokenAwarePolicy)
    inner = profile.load_balancing_policy._child_policy
    assert isinstance(inner, DCAwareRoundRobinPolicy)
    assert inner.local_dc == "west"
    assert arguments["auth_provider"] is None
    assert arguments["ssl_context"] is None
    assert arguments["prepare_on_all_hosts"] is False


def test_aiocassandra_reconnects_for_ever_with_longer_and_longer_pauses() -> None:
    schedule = aiocassandra_driver.cluster_arguments(config(), 1.0)["reconnection_policy"].new_schedule()
    pauses_s = [next(schedule) for _ in range(200)]
    assert 0.2 < pauses_s[0] < 0.3
    assert max(pauses_s) <= 5.0 * 1.15
    assert min(pauses_s[10:]) >= 5.0 * 0.85


@pytest.mark.parametrize(("after_ms", "pauses_s"), [(0, []), (20, [0.02, 0.02])])
def test_aiocassandra_asks_other_replicas_too_if_it_is_told_to(after_ms: int, pauses_s: list[float]) -> None:
    arguments = aiocassandra_driver.cluster_arguments(config(speculative_after_ms=after_ms), 1.0)
    (profile,) = arguments["execution_profiles"].values()
    plan = profile.speculative_execution_policy.new_plan("keyspace", None)
    assert [pause for _ in range(3) if (pause := plan.next_execution(None)) >= 0] == pauses_s


@pytest.mark.parametrize("driver", [aiocassandra_driver, acsylla_driver])
def test_the_password_is_the_first_line_of_its_file(tmp_path: Path, driver: Any) -> None:
    (tmp_path / "password").write_text("s3cret \nand more\n")
    arguments = driver.cluster_arguments(config(username="me", password_file=str(tmp_path / "password")), 1.0)
    if driver is acsylla_driver:
        assert (arguments["username"], arguments["password"]) == ("me", "s3cret ")
    else:
        assert (arguments["auth_provider"].username, arguments["auth_provider"].password) == ("me", "s3cret ")


@pytest.mark.skipif(not Path(CA).exists(), reason="needs ca-certificates")
@pytest.mark.parametrize("check_hostname", [True, False])
def test_tls_always_checks_the_certificate(check_hostname: bool) -> None:
    context = aiocassandra_driver.tls_context(Tls(ca=CA, check_hostname=check_hostname))
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname is check_hostname
    assert context.cert_store_stats()["x509_ca"] > 0


def test_a_certificate_that_is_not_there_is_an_error_of_opening() -> None:
    with pytest.raises(FileNotFoundError):
        aiocassandra_driver.cluster_arguments(config(tls=Tls(ca="/nowhere")), 1.0)


def test_acsylla_is_told_where_and_how_to_ask() -> None:
    import acsylla

    arguments = acsylla_driver.cluster_arguments(
        config(consistency="QUORUM", local_datacenter="west", speculative_after_ms=20, concurrency=20_000), 1.0
    )
    assert arguments["contact_points"] == ["10.0.0.1", "10.0.0.2"]
    assert arguments["consistency"] is acsylla.Consistency.QUORUM
    assert arguments["load_balance_dc_aware"] == "west"
    assert arguments["speculative_execution_policy"] == acsylla.SpeculativeExecutionPolicy(20, 2)
    assert arguments["queue_size_io"] == 20_000
    assert arguments["connect_timeout"] == 1.0
    assert acsylla_driver.cluster_arguments(config(), 1.0)["speculative_execution_policy"] is None


async def test_an_answer_that_comes_too_late_reaches_nobody() -> None:
    complaints: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    cancelled, answered = aiocassandra_driver._Answer(), aiocassandra_driver._Answer()
    cancelled.cancel()
    answered.set_result(1)
    for future in (cancelled, answered):
        loop.call_soon_threadsafe(future.set_result, 2)
        loop.call_soon_threadsafe(future.set_exception, OSError("late"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert complaints == []
    assert cancelled.cancelled()
    assert await answered == 1


def test_errors_are_mapped_and_keep_their_words() -> None:
    from acsylla import errors
    from cassandra import InvalidRequest, OperationTimedOut
    from cassandra.cluster import NoHostAvailable

    for error in (OperationTimedOut(), NoHostAvailable("none", {}), OSError("gone"), RuntimeError("shut down")):
        assert type(aiocassandra_driver.mapped(error)) is Unanswered
    for refusal in (InvalidRequest("no such column"), TypeError("bind"), ValueError("bind")):
        assert type(aiocassandra_driver.mapped(refusal)) is Refused
    assert "InvalidRequest" in str(aiocassandra_driver.mapped(InvalidRequest("no such column")))
    assert type(acsylla_driver.mapped(errors.CassErrorServerInvalidQuery("x"))) is Refused
    assert type(acsylla_driver.mapped(errors.CassErrorLibRequestTimedOut("x"))) is Unanswered


@pytest.mark.parametrize("driver", ["aiocassandra", "acsylla"])
def test_a_driver_that_is_not_installed_is_named_with_what_would_help(
    monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    monkeypatch.setitem(sys.modules, f"feature_io.stores.drivers.{driver}_driver", None)
    with pytest.raises(ConfigError, match=r"store s: driver \w+ is not installed .*pip install 'modelhost\[\w+\]'"):
        CassandraFeatureStore(config(driver=driver))


@pytest.mark.parametrize("driver", ["aiocassandra", "acsylla"])
async def test_a_store_that_was_never_opened_says_so_and_closes(driver: str) -> None:
    from contract import id_key, scalar

    from host.config.features import FeatureView

    store = CassandraFeatureStore(config(driver=driver))
    view = FeatureView(name="v", store="s", keyspace="k", table="t", keys=(id_key(),), columns=(scalar("x", "FP64"),))
    with pytest.raises(StoreUnavailable, match="store s: view v: the store is not open"):
        await store.reader(view, 1.0)
    with pytest.raises(StoreUnavailable, match="not open"):
        await store.write(view, [], 1.0)
    await store.close()
    await store.close()
