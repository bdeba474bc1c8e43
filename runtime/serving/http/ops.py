"""What operators ask: whether the server is well, its metrics, and what the page shows."""

from __future__ import annotations

from fastapi import APIRouter, Response
from pydantic import BaseModel

from sparsespec.runtime.serving.http.prometheus import metrics_page
from sparsespec.runtime.serving.openai.answer_types import ErrorBody
from sparsespec.runtime.serving.service import Service

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Health(BaseModel):
    """ok, draining or failed."""

    status: str


class Status(BaseModel):
    """What happens now; means and rates are of the last seconds."""

    model: str
    running: int
    waiting: int
    kv_cache_usage: float
    tokens_per_second: float
    drafts_mean: float | None
    accepted_drafts_mean: float | None


def ops_router(service: Service, model_name: str) -> APIRouter:
    """Routes that ask the service."""
    router = APIRouter()

    @router.get("/health", responses={503: {"model": Health}})
    async def health(response: Response) -> Health:
        """200 while requests are taken, else 503."""
        status = service.status
        response.status_code = 503 if status.failed or status.draining else 200
        return Health(status="failed" if status.failed else "draining" if status.draining else "ok")

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(metrics_page(service), media_type=METRICS_TYPE)

    @router.get("/v1/status", responses={401: {"model": ErrorBody, "description": "Unauthorized"}})
    async def status() -> Status:
        """How full the server is and what was accepted lately."""
        found = service.status
        return Status(
            model=model_name,
            running=found.running,
            waiting=found.waiting,
            kv_cache_usage=found.kv_cache_usage,
            tokens_per_second=found.tokens_per_second,
            drafts_mean=found.drafts_mean,
            accepted_drafts_mean=found.accepted_drafts_mean,
        )

    return router
