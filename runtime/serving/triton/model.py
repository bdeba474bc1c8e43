"""The model class that Triton's Python backend calls: a service behind `execute`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from itertools import count

from sparsespec.builder.errors import RequestError
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.outputs import OutputDelta
from sparsespec.runtime.serving.logs import log_as_json
from sparsespec.runtime.serving.metrics import ServiceMetrics
from sparsespec.runtime.serving.process import tune_process
from sparsespec.runtime.serving.service import Service
from sparsespec.runtime.serving.service_errors import EngineFailedError, ServiceError
from sparsespec.runtime.serving.triton.cancellation import CancellationWatch
from sparsespec.runtime.serving.triton.custom_metrics import CustomMetrics
from sparsespec.runtime.serving.triton.guarded_sender import GuardedSender
from sparsespec.runtime.serving.triton.loop_thread import LoopThread
from sparsespec.runtime.serving.triton.model_config import read_model_config
from sparsespec.runtime.serving.triton.python_backend import InferenceRequest, PythonBackend
from sparsespec.runtime.serving.triton.request_reader import Envelope, TextRequest, read_request
from sparsespec.runtime.serving.triton.responses import Responses
from sparsespec.runtime.serving.triton.stop_signal import on_stop_signal
from sparsespec.runtime.serving.triton.tensors import Inputs

METRICS_PERIOD_S = 0.5


class TritonModel:
    """One instance, which answers all requests in one batch. model.py derives Triton's TritonPythonModel from it."""

    def __init__(self, backend: PythonBackend) -> None:
        self._backend = backend
        self._numbers = count(1)

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the engine. Raises InputError for what config.pbtxt says wrong, EngineError for a bad engine."""
        log_as_json()
        self._config = read_model_config(args)
        metrics = ServiceMetrics()
        llm = LLM(self._config.options.engine_dir, self._config.speculation, self._config.runtime, metrics.steps)
        tune_process()
        self._loop = LoopThread("sparsespec-triton")
        self._service = self._loop.run(self._make_service(llm, metrics))
        self._metrics = self._make_metrics()
        self._publishing = self._loop.submit(self._publish())
        self._watch = CancellationWatch()
        on_stop_signal(lambda: self._loop.run(self._stop()))

    def execute(self, requests: Sequence[InferenceRequest]) -> None:
        """Begin to answer requests; returns at once."""
        for request in requests:
            self._begin(request)

    def finalize(self) -> None:
        """Triton unloads the model: it has none of its requests in flight."""
        self._watch.close()
        self._publishing.cancel()
        self._loop.run(self._stop())
        self._metrics.publish(self._service.metric_families())
        self._metrics.close()
        self._loop.close()

    def _begin(self, request: InferenceRequest) -> None:
        sender = GuardedSender(request.get_response_sender())
        responses = Responses(self._backend, sender, request.requested_output_names())
        try:
            read = read_request(Inputs(request.inputs()), self._envelope(request))
        except Exception as error:
            self._fail(error, responses)
            return
        self._watch.watch(self._loop.submit(self._answer(read, responses)), sender)

    def _envelope(self, request: InferenceRequest) -> Envelope:
        return Envelope(
            request_id=request.request_id() or f"triton-{next(self._numbers)}",
            timeout_s=request.timeout() / 1e6 or None,
            exclude_input_in_output=self._config.options.exclude_input_in_output,
        )

    async def _answer(self, request: TextRequest, responses: Responses) -> None:
        """Whatever happens, there is a last response: Triton waits for it."""
        try:
            await self._stream(request, responses)
        except asyncio.CancelledError:
            responses.fail("the client has left", self._backend.TritonError.CANCELLED)
            raise
        except Exception as error:
            self._fail(error, responses)

    async def _stream(self, request: TextRequest, responses: Responses) -> None:
        async with aclosing(self._service.stream(request.service)) as items:
            async for item in items:
                if not isinstance(item, OutputDelta):
                    responses.finish(request, item)
                elif request.stream:
                    responses.grow(item)

    def _fail(self, error: Exception, responses: Responses) -> None:
        codes = self._backend.TritonError
        if isinstance(error, RequestError):
            responses.fail(str(error), codes.INVALID_ARG)
        elif isinstance(error, ServiceError):
            responses.fail(str(error), codes.INTERNAL if isinstance(error, EngineFailedError) else codes.UNAVAILABLE)
        else:
            logging.getLogger(__name__).error("a request failed", exc_info=error)
            responses.fail("the server failed; its log says why", codes.INTERNAL)

    async def _make_service(self, llm: LLM, metrics: ServiceMetrics) -> Service:
        return Service(llm, self._config.service, metrics)

    def _make_metrics(self) -> CustomMetrics:
        labels = {"model": self._config.name, "version": self._config.version}
        return CustomMetrics(self._backend, self._service.metric_families(), labels)

    async def _publish(self) -> None:
        while True:
            self._metrics.publish(self._service.metric_families())
            await asyncio.sleep(METRICS_PERIOD_S)

    async def _stop(self) -> None:
        """Take nothing more in; end what takes too long."""
        await self._service.drain(self._config.service.drain_timeout_s)
        await self._service.close()
