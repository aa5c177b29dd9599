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

    @property
    def method(self) -> str:
        """The method it answers to; HEAD stands beside GET."""
        return self.value[0]

    @property
    def allow(self) -> str:
        """The `Allow` header of a 405."""
        return "GET, HEAD" if self.method == "GET" else self.method


class Route(NamedTuple):
    """An endpoint with what its path names; an empty version means the default one."""

    endpoint: Endpoint
    model: str = ""
    version: str = ""


_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]*"


def _pattern(endpoint: Endpoint) -> re.Pattern[str]:
    path = endpoint.value[1]
    path = path.replace("{model}", f"(?P<model>{_NAME})")
    return re.compile(path.replace("{version}", f"(?:/versions/(?P<version>{_NAME}))?"))


# In order: `/v2/models/stats` is the statistics of all models, never the metadata of a model called stats.
_PATTERNS: Final = [(endpoint, _pattern(endpoint)) for endpoint in Endpoint]


@lru_cache(maxsize=4096)
def match_route(method: str, target: str) -> Route:
    """Find the endpoint of a request target in origin form. Raises `NotFound` or `MethodNotAllowed`.

    Paths are case-sensitive. What follows a `?` is ignored. Found routes are remembered, errors are not.
    """
    path = target.partition("?")[0]
    if "%" in path:
        path = unquote(path)
    allow: list[str] = []
    for endpoint, pattern in _PATTERNS:
        match = pattern.fullmatch(path)
        if match is None:
            continue
        if method == endpoint.method or (method == "HEAD" and endpoint.method == "GET"):
            names = match.groupdict()
            return Route(endpoint, names.get("model") or "", names.get("version") or "")
        if endpoint.allow not in allow:  # two patterns may fit: /v2/models/stats
            allow.append(endpoint.allow)
    if allow:
        raise MethodNotAllowed(f"{path}: expected {' or '.join(allow)}, received {method}", ", ".join(allow))
    raise NotFound(f"no such path: {path[:200]}")
