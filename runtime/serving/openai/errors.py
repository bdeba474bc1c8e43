"""What clients are told of errors: OpenAI's body, whatever went wrong. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.responses import Response

from sparsespec.builder.config_io import shown
from sparsespec.builder.errors import RequestError
from sparsespec.runtime.serving.service_errors import (
    DeadlineError,
    DrainingError,
    EngineFailedError,
    OverloadedError,
    ServiceError,
)

_RETRY_AFTER_S = 1


class FieldError(RequestError):
    """A field of a request that does not go with the others."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class UnknownModelError(RequestError):
    """Another model than the one that is served was asked for."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the model {shown(name)} does not exist here: GET /v1/models lists what does")


@dataclass(frozen=True)
class ErrorAnswer:
    """An error as OpenAI's clients know it."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """JSON. What is quoted of a request may be no Unicode text."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        param = None if self.param is None else _unicode(self.param)
        error = {"message": _unicode(self.message), "type": kind, "param": param, "code": self.code}
        return json.dumps({"error": error}).encode()

    def response(self) -> Response:
        """The whole HTTP answer."""
        return Response(self.body, self.status, dict(self.headers), "application/json")


def error_answer(error: Exception) -> ErrorAnswer:
    """For whatever a request may raise; of what nobody foresaw, the client is only told that it happened."""
    if isinstance(error, UnknownModelError):
        return ErrorAnswer(404, str(error), param="model", code="model_not_found")
    if isinstance(error, FieldError):
        return ErrorAnswer(400, str(error), param=error.param)
    if isinstance(error, RequestError):
        return ErrorAnswer(400, str(error))
    if isinstance(error, ServiceError):
        return _service_error(error)
    if isinstance(error, HTTPException):
        return ErrorAnswer(error.status_code, error.detail, headers=error.headers or {})
    return ErrorAnswer(500, "an error that is not the request's; the server's log has it")


def _service_error(error: ServiceError) -> ErrorAnswer:
    retry = {"Retry-After": str(_RETRY_AFTER_S)}
    if isinstance(error, OverloadedError):
        return ErrorAnswer(429, str(error), code="rate_limit_exceeded", headers=retry)
    if isinstance(error, DrainingError):
        return ErrorAnswer(503, str(error), code="draining", headers=retry)
    if isinstance(error, DeadlineError):
        return ErrorAnswer(504, str(error), code="timeout")
    code = "engine_failed" if isinstance(error, EngineFailedError) else None
    return ErrorAnswer(500, str(error), code=code)


def _unicode(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
