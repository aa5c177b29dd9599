"""What `scale` and `rollback` make of a deployment file."""

from __future__ import annotations

import msgspec
import pytest

from host.cli.edits import parse_scale, promoted, rolled_back, scaled
from host.config.deployment import DeployedModel, Deployment
from host.config.history import Change, Version
from host.protocol.errors import ConfigError
from host.protocol.messages import Limits
from host.protocol.types import Signature

FILE = """\
[[models]]
name = "churn"
version = "2"
default = true

[[models]]
name = "churn"
version = "3" # being tried
processes = 1

[[models]]
name = "fraud"
"""


def model(name: str, version: str, *, default: bool = True) -> DeployedModel:
    return DeployedModel(
        name=name,
        version=version,
        processes=1,
        package="/p",
        platform="python",
        signature=Signature((), ()),
        limits=Limits(),
        default=default,
    )


DESIRED = Deployment((model("churn", "2"), model("churn", "3", default=False), model("fraud", "8")))


def history(name: str, *versions: str) -> list[Change]:
    return [
        Change(
            at=0.0, who="ada", what="apply", generation=at, differences=(), models=(Version(name, version, 1, True),)
        )
        for at, version in enumerate(versions)
    ]


# -- parse_scale ----------------------------------------------------------------------------------------------
def test_numbers_are_read() -> None:
    assert parse_scale(["churn=1", "churn.v3=256", "a=b=04"]) == {"churn": 1, "churn.v3": 256, "a=b": 4}


@pytest.mark.parametrize(
    "word",
    ["churn", "churn=", "=4", "", "=", "churn=0", "churn=257", "churn=-1", "churn=+1", "churn=1.0", "churn= 1",
     "churn=٣", "churn=²", "churn=1_0"],
)  # fmt: skip
def test_what_is_no_number_is_named(word: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_scale([word])
    assert raised.value.problems == (f'expected MODEL=N with N from 1 to 256, such as churn=4, received "{word}"',)


def test_a_number_that_python_does_not_read_is_named() -> None:
    with pytest.raises(ConfigError, match="expected MODEL=N"):
        parse_scale(["churn=" + "9" * 5000])


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_scale(["churn=2", "fraud", "churn=3", "x=0"])
    assert [problem.rpartition("received ")[2] for problem in raised.value.problems] == [
        '"fraud"',
        '"churn" twice',
        '"x=0"',
    ]


# -- scaled ---------------------------------------------------------------------------------------------------
def test_a_model_is_its_default_version() -> None:
    assert scaled(FILE, DESIRED, {"churn": 4}) == FILE.replace("default = true\n", "default = true\nprocesses = 4\n")


def test_any_version_can_be_named() -> None:
    assert scaled(FILE, DESIRED, {"churn.v3": 4}) == FILE.replace("processes = 1", "processes = 4")


def test_an_entry_without_a_version_is_the_one_that_runs() -> None:
    assert scaled(FILE, DESIRED, {"fraud": 4}) == FILE + "processes = 4\n"
    assert scaled(FILE, DESIRED, {"fraud.v8": 4}) == FILE + "processes = 4\n"


def test_several_models_at_once() -> None:
    text = scaled(FILE, DESIRED, {"churn.v3": 2, "fraud": 3})
    assert text == FILE.replace("processes = 1", "processes = 2") + "processes = 3\n"


def test_an_entry_that_names_its_version_comes_before_one_that_does_not() -> None:
    text = '[[models]]\nname = "churn"\n[[models]]\nname = "churn"\nversion = "2"\ndefault = true\n'
    desired = Deployment((model("churn", "3", default=False), model("churn", "2")))
    assert scaled(text, desired, {"churn": 4}) == text + "processes = 4\n"


@pytest.mark.parametrize("name", ["nobody", "churn.v9", ""])
def test_a_model_that_this_host_has_not_is_named(name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        scaled(FILE, DESIRED, {name: 4})
    assert raised.value.problems == (f'expected a model of this host (churn, fraud), received "{name}"',)


def test_a_file_that_no_longer_has_the_model_is_named() -> None:
    with pytest.raises(ConfigError, match="with the name fraud in the deployment file"):
        scaled(FILE.replace('"fraud"', '"others"'), DESIRED, {"fraud": 4})


# -- rolled_back ----------------------------------------------------------------------------------------------
def test_the_version_before_is_written() -> None:
    text = rolled_back(FILE, DESIRED, history("churn", "1", "2"), "churn", None)
    assert text == FILE.replace('version = "2"', 'version = "1"')


def test_an_entry_without_a_version_gets_one() -> None:
    assert rolled_back(FILE, DESIRED, history("fraud", "7", "8"), "fraud", None) == FILE + 'version = "7"\n'


def test_the_version_can_be_named() -> None:
    text = rolled_back(FILE, DESIRED, history("churn", "1", "2"), "churn", "0.9")
    assert text == FILE.replace('version = "2"', 'version = "0.9"')
    assert rolled_back(FILE, DESIRED, [], "churn.v3", "2.9") == FILE.replace('version = "3"', 'version = "2.9"')


def test_without_a_version_before_the_way_out_is_shown() -> None:
    with pytest.raises(ConfigError) as raised:
        rolled_back(FILE, DESIRED, history("churn", "2"), "churn", None)
    assert raised.value.problems == (
        "churn: expected a version that it had before 2; this host's history has none: name one with --to",
    )


def test_only_a_model_of_this_host_is_rolled_back() -> None:
    with pytest.raises(ConfigError, match="expected a model of this host"):
        rolled_back(FILE, DESIRED, history("nobody", "1", "2"), "nobody", None)


def test_rolling_back_touches_the_entry_that_runs() -> None:
    text = '[[models]]\nname = "churn"\n[[models]]\nname = "churn"\nversion = "2"\ndefault = true\n'
    desired = Deployment((model("churn", "3", default=False), model("churn", "2")))
    assert rolled_back(text, desired, history("churn", "1", "2"), "churn", None) == text.replace('"2"', '"1"')


# -- canaries ---------------------------------------------------------------------------------------------------------
WITH_CANARY = """[[models]]
name = "churn"
version = "2"  # what is served

[[models]]
name = "churn"
version = "3"
canary_percent = 5
"""


def _deployed_with_canary() -> Deployment:
    default = model("churn", "2")
    return Deployment((default, msgspec.structs.replace(default, version="3", default=False, canary_percent=5)))


def test_a_rollback_takes_a_canary_away() -> None:
    text = rolled_back(WITH_CANARY, _deployed_with_canary(), [], "churn", None)
    assert text.strip() == WITH_CANARY[: WITH_CANARY.index("[[models]]", 5)].strip()


def test_a_promoted_canary_takes_the_place_of_the_default() -> None:
    text = promoted(WITH_CANARY, _deployed_with_canary(), "churn")
    assert text.strip() == WITH_CANARY[: WITH_CANARY.index("[[models]]", 5)].replace('"2"', '"3"').strip()


def test_without_a_canary_nothing_can_be_promoted() -> None:
    with pytest.raises(ConfigError, match="churn: expected one canary, found none"):
        promoted(WITH_CANARY, Deployment((model("churn", "2"),)), "churn")
