"""Method and path to endpoint. Pure: both lanes of the front and the documentation's test use this one table."""

from __future__ import annotations

import enum
import re
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import unquote

from host.protocol.errors import MethodNotAllowed, NotFound


class Endpoint(enum.Enum):
    """What the front can do: its name in the table below, method and path pattern."""

    LIVE = ("GET", r"/v2/health/live")
    READY = ("GET", r"/v2/health/ready")
    SERVER_METADATA = ("GET", r"/v2/?")
    ALL_STATISTICS = ("GET", r"/v2/models/stats")
    MODEL_METADATA = ("GET", r"/v2/models/{model}{version}")
    MODEL_READY = ("GET", r"/v2/models/{model}{version}/ready")
    MODEL_CONFIG = ("GET", r"/v2/models/{model}{version}/config")
    MODEL_STATISTICS = ("GET", r"/v2/models/{model}{version}/stats")
    INFER = ("POST", r"/v2/models/{model}{version}/infer")
    REPOSITORY_INDEX = ("POST", r"/v2/repository/index")
    V1_MODELS = ("GET", r"/v1/models")
    V1_MODEL_STATUS = ("GET", r"/v1/models/{model}{version}")
    V1_PREDICT = ("POST", r"/v1/models/{model}{version}:predict")
    V1_FEATURES = ("GET", r"/v1/features")
    V1_FEATURE = ("GET", r"/v1/features/{view}{key}")
    V1_FEATURES_BATCH = ("POST", r"/v1/features:batch")

    @property
    def method(self) -> str:
        """The method it answers to; HEAD stands beside GET."""
        return self.value[0]

    @property
    def route(self) -> str:
        """The path's pattern, as logs and traces name it; the one without a version stands for both."""
        return self.value[1].replace("{version}", "").removesuffix("/?")

    @property
    def allow(self) -> str:
        """The `Allow` header of a 405."""
        return "GET, HEAD" if self.method == "GET" else self.method


class Route(NamedTuple):
    """An endpoint with what its path names; an empty version means the default one.

    `view` and `key` are of features: one text for each part of the key.
    """

    endpoint: Endpoint
    model: str = ""
    version: str = ""
    view: str = ""
    key: tuple[str, ...] = ()


_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]*"


def _pattern(endpoint: Endpoint) -> re.Pattern[str]:
    path = endpoint.value[1]
    path = path.replace("{model}", f"(?P<model>{_NAME})")
    path = path.replace("{view}", f"(?P<view>{_NAME})").replace("{key}", "(?P<key>(?:/[^/]+)+)")
    return re.compile(path.replace("{version}", f"(?:/versions/(?P<version>{_NAME}))?"))


# In order: `/v2/models/stats` is the statistics of all models, never the metadata of a model called stats.
_PATTERNS: Final = [(endpoint, _pattern(endpoint)) for endpoint in Endpoint]


def _texts(path: str) -> tuple[str, ...]:
    """The parts of a key's path. Raises `NotFound` for one that is not UTF-8: it would be another key."""
    try:
        return tuple(unquote(part, errors="strict") for part in path.split("/")[1:])
    except UnicodeDecodeError as error:
        raise NotFound(f"no such path: a part of the key is not UTF-8: {error.reason}") from error


@lru_cache(maxsize=4096)
def match_route(method: str, target: str) -> Route:
    """Find the endpoint of a request target in origin form. Raises `NotFound` or `MethodNotAllowed`.

    Paths are case-sensitive. What follows a `?` is ignored. Found routes are remembered, errors are not.
    """
    raw_path = target.partition("?")[0]
    path = unquote(raw_path) if "%" in raw_path else raw_path
    allow: list[str] = []
    for endpoint, pattern in _PATTERNS:
        # A key may hold anything, a slash too: its path is taken apart first and read then.
        match = pattern.fullmatch(raw_path if endpoint is Endpoint.V1_FEATURE else path)
        if match is None:
            continue
        if method == endpoint.method or (method == "HEAD" and endpoint.method == "GET"):
            names = match.groupdict()
            key = _texts(names.get("key") or "")
            return Route(endpoint, names.get("model") or "", names.get("version") or "", names.get("view") or "", key)
        if endpoint.allow not in allow:  # two patterns may fit: /v2/models/stats
            allow.append(endpoint.allow)
    if allow:
        raise MethodNotAllowed(f"{path}: expected {' or '.join(allow)}, received {method}", ", ".join(allow))
    raise NotFound(f"no such path: {path[:200]}")
