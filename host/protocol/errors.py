"""One tree of errors, split by who must act, and the one table that maps it to HTTP."""

from __future__ import annotations

from typing import ClassVar, Final


class ModelhostError(Exception):
    """Base of every error that modelhost raises on purpose. Its text is meant to be read by a person."""


class ConfigError(ModelhostError):
    """The operator must act: a file, a setting or a package is wrong. Exit code 2.

    `problems` holds everything that was found, one line each: file, key, expected, received.
    """

    def __init__(self, *problems: str) -> None:
        self.problems: tuple[str, ...] = problems
        super().__init__("\n".join(problems))


class GoldenFailure(ConfigError):
    """A model answers otherwise than its golden cases say."""


class HostError(ModelhostError):
    """The host could not do what was asked (not running, did not start, did not stop). Exit code 1."""


class FrameError(ModelhostError):
    """A peer on a Unix socket broke the framing; its connection is closed. Named cases: see `frames`."""


class RequestError(ModelhostError):
    """A request that gets an error answer. `code` is the stable, documented name of the case."""

    code: ClassVar[str]


# -- the caller must act --------------------------------------------------------------------------
class Malformed(RequestError):
    """The bytes are not what their format says: broken JSON, sizes that do not add up."""

    code = "MALFORMED"


class NotFound(RequestError):
    """No such path."""

    code = "NOT_FOUND"


class UnknownModel(RequestError):
    """No model of that name is deployed here."""

    code = "UNKNOWN_MODEL"


class UnknownVersion(RequestError):
    """The model is deployed here, the version is not."""

    code = "UNKNOWN_VERSION"


class MethodNotAllowed(RequestError):
    """The path exists, the method does not. `allow` goes into the header of that name."""

    code = "METHOD_NOT_ALLOWED"

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class BodyTooLarge(RequestError):
    """The body, after decompression, exceeds the host's limit."""

    code = "BODY_TOO_LARGE"


class UnsupportedMediaType(RequestError):
    """Content-Type or Content-Encoding is none that modelhost reads."""

    code = "UNSUPPORTED_MEDIA_TYPE"


class InvalidInput(RequestError):
    """Well-formed, but not what the model takes: the message names input, expected and received."""

    code = "INVALID_INPUT"


class MissingFeature(RequestError):
    """A model's input was not given and cannot be fetched: no key, no such entity, a null without a default."""

    code = "MISSING_FEATURE"


class UnknownView(RequestError):
    """No feature view of that name."""

    code = "UNKNOWN_VIEW"


class UnknownEntity(RequestError):
    """The view has no row for the key."""

    code = "UNKNOWN_ENTITY"


# -- capacity: come back later ----------------------------------------------------------------------
class Overloaded(RequestError):
    """Base of refusals that tell the caller when to come back (`Retry-After`, whole seconds)."""

    code = "OVERLOADED"
    retry_after_s: int = 1


class QueueFull(Overloaded):
    """The model's bounded queue has no room."""

    code = "QUEUE_FULL"


class WouldBeLate(Overloaded):
    """By measured service time the answer would come after the request's deadline: refused at once."""

    code = "WOULD_BE_LATE"


class ModelNotReady(Overloaded):
    """The model is deployed, but no worker is warm."""

    code = "MODEL_NOT_READY"


class FeaturesUnavailable(Overloaded):
    """The store of a view does not answer, the cache has nothing, and the view has no defaults to go on with."""

    code = "FEATURES_UNAVAILABLE"


# -- time ---------------------------------------------------------------------------------------------
class DeadlineExceeded(RequestError):
    """The request's deadline passed; the message says where it was lost."""

    code = "DEADLINE_EXCEEDED"


# -- the model or its worker ---------------------------------------------------------------------------
class ModelFailed(RequestError):
    """The model raised. Its message is in the worker's log, not in the answer."""

    code = "MODEL_FAILED"


class InvalidOutput(ModelFailed):
    """The model answered something that its own signature does not allow."""

    code = "INVALID_OUTPUT"


class WorkerDied(RequestError):
    """The worker died with the request in flight, and a retry is not allowed."""

    code = "WORKER_DIED"


class PoisonRequest(WorkerDied):
    """Two workers died while they ran the request: it is not tried again."""

    code = "POISON_REQUEST"


class Internal(RequestError):
    """A defect of modelhost itself; details are in the log."""

    code = "INTERNAL"


HTTP_STATUS: Final[dict[type[RequestError], int]] = {
    Malformed: 400,
    NotFound: 404,
    UnknownModel: 404,
    UnknownVersion: 404,
    MethodNotAllowed: 405,
    BodyTooLarge: 413,
    UnsupportedMediaType: 415,
    InvalidInput: 422,
    MissingFeature: 422,
    UnknownView: 404,
    UnknownEntity: 404,
    Overloaded: 503,
    QueueFull: 503,
    WouldBeLate: 503,
    ModelNotReady: 503,
    FeaturesUnavailable: 503,
    DeadlineExceeded: 504,
    ModelFailed: 500,
    InvalidOutput: 500,
    WorkerDied: 502,
    PoisonRequest: 502,
    Internal: 500,
}
"""The whole mapping. A test walks the subclasses of `RequestError` and fails on one without a row."""


def http_status(error: RequestError) -> int:
    """The HTTP status of an error."""
    return HTTP_STATUS[type(error)]
