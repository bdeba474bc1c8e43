"""The whole application: OpenAI's routes, the operators' and the page."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI

from sparsespec.runtime.serving.http.ops import ops_router
from sparsespec.runtime.serving.http.page import page_router
from sparsespec.runtime.serving.openai.routes import ApiApp, add_error_answers, add_openai_routes
from sparsespec.runtime.serving.service import Service


def create_app(service: Service, model_name: str) -> FastAPI:
    """Routes over a service; `server.guarded` puts the guards before them."""
    # FastAPI's own pages of documentation load scripts from elsewhere.
    app = ApiApp(title="sparsespec", version=version("sparsespec"), docs_url=None, redoc_url=None)
    add_openai_routes(app, service, model_name)
    add_error_answers(app)
    app.include_router(ops_router(service, model_name))
    app.include_router(page_router())
    return app
