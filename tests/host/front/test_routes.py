"""Routes: what a path means, and what it does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.front.routes import Endpoint, Route, match_route
from host.protocol.errors import MethodNotAllowed, NotFound


@pytest.mark.parametrize(
    ("method", "target", "route"),
    [
        ("GET", "/v2/health/live", Route(Endpoint.LIVE)),
        ("HEAD", "/v2/health/ready", Route(Endpoint.READY)),
        ("GET", "/v2", Route(Endpoint.SERVER_METADATA)),
        ("GET", "/v2/", Route(Endpoint.SERVER_METADATA)),
        ("GET", "/v2/models/stats", Route(Endpoint.ALL_STATISTICS)),
        ("GET", "/v2/models/churn", Route(Endpoint.MODEL_METADATA, "churn")),
        ("GET", "/v2/models/churn/versions/3", Route(Endpoint.MODEL_METADATA, "churn", "3")),
        ("GET", "/v2/models/churn/ready", Route(Endpoint.MODEL_READY, "churn")),
        ("GET", "/v2/models/churn/versions/3/ready", Route(Endpoint.MODEL_READY, "churn", "3")),
        ("GET", "/v2/models/churn/config", Route(Endpoint.MODEL_CONFIG, "churn")),
        ("GET", "/v2/models/churn/versions/3/stats", Route(Endpoint.MODEL_STATISTICS, "churn", "3")),
        ("POST", "/v2/models/churn/infer", Route(Endpoint.INFER, "churn")),
        ("POST", "/v2/models/churn/versions/3/infer?x=1", Route(Endpoint.INFER, "churn", "3")),
        ("POST", "/v2/repository/index", Route(Endpoint.REPOSITORY_INDEX)),
        ("GET", "/v1/models", Route(Endpoint.V1_MODELS)),
        ("GET", "/v1/models/churn", Route(Endpoint.V1_MODEL_STATUS, "churn")),
        ("POST", "/v1/models/churn:predict", Route(Endpoint.V1_PREDICT, "churn")),
        ("POST", "/v1/models/a.b-c_d/versions/1.2:predict", Route(Endpoint.V1_PREDICT, "a.b-c_d", "1.2")),
        ("POST", "/v1/models/churn%3Apredict", Route(Endpoint.V1_PREDICT, "churn")),
    ],
)
def test_path_means_its_endpoint(method: str, target: str, route: Route) -> None:
    assert match_route(method, target) == route


@pytest.mark.parametrize(
    "target",
    [
        "/", "/v2/Health/live", "/V2", "/v2/models", "/v2/models/", "/v2/models/-churn/infer", "/v2/models/a b/infer",
        "/v2/models/a%2Fb/infer", "/v2/models/churn/versions//infer", "/v2/models/churn/infer/", "//v2", "*",
        "http://other/v2", "/v2/models/../infer", "/v1/models/churn:explain", "",
    ],
)  # fmt: skip
def test_other_paths_are_not_found(target: str) -> None:
    with pytest.raises(NotFound):
        match_route("POST", target)


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("GET", "/v2/models/churn/infer", "POST"),
        ("POST", "/v2/health/live", "GET, HEAD"),
        ("DELETE", "/v2/models/churn", "GET, HEAD"),
        ("get", "/v2", "GET, HEAD"),
    ],
)
def test_wrong_method_says_what_is_allowed(method: str, target: str, allow: str) -> None:
    with pytest.raises(MethodNotAllowed) as caught:
        match_route(method, target)
    assert caught.value.allow == allow


@given(st.text(max_size=60), st.sampled_from(["GET", "POST"]))
def test_any_text_is_a_route_or_a_named_error(text: str, method: str) -> None:
    try:
        match_route(method, "/v2/models/" + text)
    except (NotFound, MethodNotAllowed):
        pass
