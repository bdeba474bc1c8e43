"""The server keeps to its own OpenAPI schema, whatever Schemathesis makes of that: the same at every run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode, Response
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    missing_required_header,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from http_server_thread import RunningServer, running_server
from sparsespec.runtime.serving.http.app import create_app
from sparsespec.runtime.serving.http.server_config import ServerConfig
from tiny_llm import BUILD, tiny_engine

pytestmark = pytest.mark.slow

# Not among them: positive_data_acceptance, in place of which is check_refusal: lengths in tokens, and which fields go
# together, are no matter of a schema. ignored_auth and the checks of resources that come and go: there are none.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    missing_required_header,
    unsupported_method,
    allow_header_conformance,
]
NOT_IN_THE_SCHEMA = (None, "stream_options", "echo", "best_of", "top_logprobs")
MOST_ANSWERS = 3
EXAMPLES = 60
VALID, WRONG = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
ROUTES = [  # a GET that takes nothing cannot be wrong, and any text may be a model's name
    ("/v1/models", "GET", VALID),
    ("/v1/models/{model}", "GET", VALID),
    ("/v1/completions", "POST", VALID),
    ("/v1/completions", "POST", WRONG),
    ("/v1/chat/completions", "POST", VALID),
    ("/v1/chat/completions", "POST", WRONG),
    ("/v1/status", "GET", VALID),
    ("/health", "GET", VALID),
]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    engine = tiny_engine(build=replace(BUILD, max_seq_len=64))  # which bounds the chats
    with running_server(engine, create_app, ServerConfig(engine_dir=Path("tiny"))) as running:
        yield running


@pytest.fixture(scope="module")
def openapi(server: RunningServer) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.parametrize(("path", "method", "mode"), ROUTES)
def test_answers_are_those_of_the_schema(openapi: Any, path: str, method: str, mode: GenerationMode) -> None:
    operation = openapi[path][method]

    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=HealthCheck)
    @given(case=operation.as_strategy(generation_mode=mode))
    def keeps_to_the_schema(case: Case) -> None:
        is_valid = mode == VALID
        if is_valid and isinstance(case.body, dict):
            case.body = served(case.body)
        answer = case.call(timeout=60)
        case.validate_response(answer, checks=CHECKS)
        if is_valid:
            check_refusal(answer)

    keeps_to_the_schema()


def served(body: dict[str, Any]) -> dict[str, Any]:
    """The only model, and no more answers than there is time for."""
    asked = {**body, "model": "tiny"}
    if isinstance(body.get("n"), int):
        asked["n"] = min(body["n"], MOST_ANSWERS)
    return asked


def check_refusal(answer: Response) -> None:
    """What fits the schema is only refused for what no schema can say."""
    if answer.status_code == 400:
        error = answer.json()["error"]
        assert error["param"] in NOT_IN_THE_SCHEMA, error["message"]
        assert error["code"] is None


def test_the_schema_knows_all_routes_and_no_422(server: RunningServer) -> None:
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/v1/models/{model}", "/health"} <= set(paths)
    answers = paths["/v1/completions"]["post"]["responses"]
    assert {"200", "400", "401", "404", "413", "429", "500", "503", "504"} <= set(answers)
    assert not any("422" in operation["responses"] for path in paths.values() for operation in path.values())
