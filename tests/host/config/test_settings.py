"""Every setting at its limits, from every source, and all problems at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.config.settings import (
    SETTINGS,
    HostSettings,
    Kind,
    Setting,
    Source,
    SourceKind,
    load_settings,
    resolve_settings,
)
from host.protocol.errors import ConfigError

CWD = Path("/work place")
FILE = Path("/etc/mh/modelhost.toml")
BOUNDED = [setting for setting in SETTINGS if setting.kind in (Kind.INTEGER, Kind.SECONDS, Kind.SIZE, Kind.SHARE)]


def resolve(
    file: dict[str, Any] | None = None, environ: dict[str, str] | None = None, flags: dict[str, str] | None = None
) -> tuple[HostSettings, dict[str, Source]]:
    return resolve_settings(file or {}, FILE if file is not None else None, environ or {}, flags or {}, CWD)


def problems(*sources: Any) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        resolve(*sources)
    return list(raised.value.problems)


def test_the_table_and_the_dataclass_name_the_same_settings() -> None:
    assert [setting.name for setting in SETTINGS] == [field.name for field in dataclasses.fields(HostSettings)]


def test_defaults() -> None:
    settings, sources = resolve()
    assert settings == HostSettings(
        address="127.0.0.1",
        port=8080,
        fronts=1,
        admin_address="127.0.0.1",
        admin_port=8081,
        repository=CWD / "model_repository",
        max_package_bytes=8 << 30,
        run_dir=CWD / "run",
        deployment=None,
        features=None,
        feature_processes=1,
        feature_cache=256 << 20,
        model_python=None,
        environments=CWD / "environments",
        wheelhouse=None,
        isolation="best-effort",
        first_uid=1_900_000_000,
        cgroup=None,
        max_body_bytes=64 << 20,
        max_connections=4096,
        keepalive_s=75,
        grace_s=0,
        drain_s=10,
        log_level="info",
        log_format="text",
        access_log=0.01,
        otlp_endpoint=None,
        trace_sample=0.01,
    )
    assert set(sources.values()) == {Source(SourceKind.DEFAULT, "default")}


def test_a_later_source_wins_and_says_so() -> None:
    file, environ, flags = {"port": 1}, {"MODELHOST_PORT": "2"}, {"port": "3"}
    for sources, port, source in (
        ((file,), 1, Source(SourceKind.FILE, str(FILE))),
        ((file, environ), 2, Source(SourceKind.ENVIRONMENT, "MODELHOST_PORT")),
        ((file, environ, flags), 3, Source(SourceKind.FLAG, "--port")),
    ):
        settings, came_from = resolve(*sources)
        assert settings.port == port
        assert came_from["port"] == source


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::", "localhost"])  # noqa: S104
def test_the_admin_port_is_another_one(address: str) -> None:
    assert problems({"port": 9000, "address": address}, {"MODELHOST_ADMIN_PORT": "9000"}) == [
        f"admin_port: expected another port than the front's, received 9000 for both ({FILE}, MODELHOST_ADMIN_PORT)"
    ]
    assert resolve({"port": 9000, "admin_port": 9001, "address": address})[0].admin_port == 9001


def test_one_port_on_two_addresses_is_two_ports() -> None:
    assert resolve({"address": "192.0.2.1", "port": 8081})[0].admin_port == 8081


def test_paths_start_where_they_were_written() -> None:
    assert resolve({"run_dir": "r"})[0].run_dir == FILE.parent / "r"
    assert resolve({})[0].repository == FILE.parent / "model_repository"
    assert resolve({}, {"MODELHOST_RUN_DIR": "r"})[0].run_dir == CWD / "r"
    assert resolve({}, {}, {"run_dir": "r"})[0].run_dir == CWD / "r"
    assert resolve({"run_dir": "/abs"})[0].run_dir == Path("/abs")
    assert resolve({"run_dir": "~/r"}, {"HOME": "/home/me"})[0].run_dir == Path("/home/me/r")


@pytest.mark.parametrize("setting", BOUNDED, ids=lambda setting: setting.name)
def test_numbers_at_their_limits(setting: Setting) -> None:
    for value in (0, setting.minimum - 1, setting.minimum, setting.maximum, setting.maximum + 1):
        inside = setting.minimum <= value <= setting.maximum
        everywhere: list[tuple[dict[str, Any], ...]] = [
            ({setting.name: value},),
            ({}, {setting.variable: str(value)}),
            ({}, {}, {setting.name: str(value)}),
        ]
        for sources in everywhere:
            if inside:
                assert getattr(resolve(*sources)[0], setting.name) == value
            else:
                [problem] = problems(*sources)
                assert setting.expected in problem
                assert str(value) in problem


@pytest.mark.parametrize("setting", BOUNDED, ids=lambda setting: setting.name)
@pytest.mark.parametrize("text", ["", "x", "1_0", "nan", "inf", "-1", "1e400", "\u0661", "9" * 5000, "0x10"])
def test_texts_that_are_no_numbers(setting: Setting, text: str) -> None:
    assert len(problems({}, {}, {setting.name: text})) == 1
    if setting.kind is not Kind.SIZE:
        assert len(problems({setting.name: text})) == 1


@pytest.mark.parametrize("value", [True, None, 1.5, [8080], {"a": 1}])
def test_a_file_keeps_types_apart(value: Any) -> None:
    [problem] = problems({"port": value})
    assert problem.startswith(f"{FILE}: port: expected a whole number from 1 to 65535, received ")


def test_a_received_one_is_not_called_true() -> None:
    assert problems({"address": 1}) == [f'{FILE}: address: expected an IP address or "localhost", received 1']
    assert problems({"address": True})[0].endswith("received true")


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "::1", "10.1.2.3", "localhost"])  # noqa: S104
def test_addresses(address: str) -> None:
    assert resolve({"address": address})[0].address == address


@pytest.mark.parametrize("address", ["", "example.com", "1.2.3", "127.0.0.1:80", "*"])
def test_what_is_no_address(address: str) -> None:
    assert len(problems({"address": address})) == 1


@pytest.mark.parametrize("path", ["", "a\nb", "a\0b", "a\x7fb", "a\udcffb"])
def test_what_is_no_path(path: str) -> None:
    assert len(problems({"run_dir": path})) == 1


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:4318", "https://otel.example.com/otlp", "http://[::1]:4318", "http://c"]
)
def test_urls(url: str) -> None:
    assert resolve({"otlp_endpoint": url})[0].otlp_endpoint == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "collector:4318",
        "grpc://c:4317",
        "http://",
        "http://u:p@c",
        "http://c:0",
        "http://c:65536",
        "http://c:x",
        "http://c?token=1",
        "http://c#x",
        "http://c\n",
        "http://c d",
        "http://ä",
        "http://[::1",
    ],
)
def test_what_is_no_url(url: str) -> None:
    assert len(problems({"otlp_endpoint": url})) == 1


def test_sizes() -> None:
    assert resolve({"max_body_bytes": "1KiB"})[0].max_body_bytes == 1024
    assert resolve({}, {"MODELHOST_MAX_BODY_BYTES": "2 MiB"})[0].max_body_bytes == 2 << 20
    assert resolve({"max_body_bytes": 5})[0].max_body_bytes == 5
    assert "64MiB" in problems({"max_body_bytes": "1MB"})[0]


def test_everything_wrong_is_said_at_once_even_what_is_overridden() -> None:
    found = problems(
        {"port": "x", "prot": 1}, {"MODELHOST_PORT": "0", "MODELHOST_FRONT": "1", "PATH": "/bin"}, {"fronts": "0"}
    )
    assert [problem.split(": expected")[0].split(": unknown")[0] for problem in found] == [
        f"{FILE}: port",
        "environment: MODELHOST_PORT",
        "command line: --fronts",
        f"{FILE}: prot",
        "environment: MODELHOST_FRONT",
    ]
    assert '(did you mean "port"?)' in found[3]
    assert '(did you mean "MODELHOST_FRONTS"?)' in found[4]


def test_an_empty_variable_is_unset() -> None:
    assert resolve({}, {"MODELHOST_PORT": "", "MODELHOST_NONSENSE": ""})[0].port == 8080


@given(
    st.dictionaries(
        st.sampled_from([setting.name for setting in SETTINGS] + ["other"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=2),
    )
)
def test_any_file_is_settings_or_a_config_error(table: dict[str, Any]) -> None:
    try:
        settings, _ = resolve(table)
    except ConfigError as error:
        assert error.problems
    else:
        assert settings.run_dir.is_absolute()


# -- files ------------------------------------------------------------------------------------------------
def test_a_file_is_found_in_the_current_directory(tmp_path: Path) -> None:
    assert load_settings(None, {}, {}, tmp_path).file is None
    (tmp_path / "modelhost.toml").write_text("port = 9000\n")
    loaded = load_settings(None, {}, {}, tmp_path)
    assert (loaded.settings.port, loaded.file) == (9000, tmp_path / "modelhost.toml")


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    for config, environ in ((Path("x.toml"), {}), (None, {"MODELHOST_CONFIG": "x.toml"})):
        with pytest.raises(ConfigError, match=r"x.toml: expected a file, found none"):
            load_settings(config, {}, environ, tmp_path)


def test_a_deployment_beside_the_file_is_taken(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "modelhost.toml").write_text("")
    assert load_settings(Path("conf/modelhost.toml"), {}, {}, tmp_path).settings.deployment is None
    beside = tmp_path / "conf" / "deployment.toml"
    beside.write_text("")
    assert load_settings(Path("conf/modelhost.toml"), {}, {}, tmp_path).settings.deployment == beside
    given = load_settings(Path("conf/modelhost.toml"), {"deployment": "d.toml"}, {}, tmp_path)
    assert given.settings.deployment == tmp_path / "d.toml"


def test_a_broken_file_names_its_place(tmp_path: Path) -> None:
    (tmp_path / "modelhost.toml").write_text("port = \n")
    with pytest.raises(ConfigError, match=r"modelhost.toml: not TOML: .*line 1"):
        load_settings(None, {}, {}, tmp_path)


def test_the_documentation_names_every_setting() -> None:
    page = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
    for setting in SETTINGS:
        default = "unset" if setting.default is None else f"`{setting.default}`"
        assert f"| `{setting.name}` | `{setting.variable}` | {default} |" in page
        if setting.maximum:
            [row] = [line for line in page.splitlines() if line.startswith(f"| `{setting.name}` |")]
            assert str(setting.maximum) in row
