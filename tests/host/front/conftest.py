"""A catalog of one model for the tests of the front's parts."""

from __future__ import annotations

import pytest

from host.config.deployment import DeployedModel, Deployment
from host.front.catalog import Catalog
from host.protocol.messages import Limits
from host.protocol.types import Signature, TensorSpec


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    """Give a catalog in which `churn` version 3 is deployed."""
    tensor = TensorSpec("x", "FP64", (-1, 1))
    model = DeployedModel(
        name="churn",
        version="3",
        processes=1,
        package="/models/churn/3",
        platform="python",
        signature=Signature(inputs=(tensor,), outputs=(tensor,)),
        limits=Limits(),
    )
    return Catalog(Deployment((model,)))
