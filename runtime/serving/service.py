"""The one path of requests from outside: let in, answered, metered and logged, over one batch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from sparsespec.builder.errors import RequestError
from sparsespec.runtime.async_llm import AsyncLLM, StreamItem
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.outputs import OutputDelta
from sparsespec.runtime.prompt_input import PromptInput
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.serving.histogram import MetricFamily
from sparsespec.runtime.serving.logs import log_event
from sparsespec.runtime.serving.metrics import ServiceMetrics
from sparsespec.runtime.serving.request_record import RequestRecord
from sparsespec.runtime.serving.service_config import ServiceConfig
from sparsespec.runtime.serving.service_errors import DeadlineError, DrainingError, EngineFailedError, OverloadedError
from sparsespec.runtime.text import TextCodec


@dataclass(frozen=True)
class ServiceRequest:
    """One prompt and what is wanted of it."""

    request_id: str  # in logs and answers
    prompt: PromptInput
    params: SamplingParams
    priority: int = 0  # of those that wait, the lowest is let in first
    timeout_s: float | None = None  # the service's own limit, or less


@dataclass(frozen=True)
class ServiceStatus:
    """How the service is."""

    running: int  # answers in the batch
    waiting: int  # answers that wait for a place in it
    kv_cache_usage: float  # share of the KV cache's pages in use
    tokens_per_second: float  # over the last seconds, as all below
    drafts_mean: float | None  # of a verification; None where nothing was verified
    accepted_drafts_mean: float | None
    draining: bool
    failed: bool


class Service:
    """Streams answers to whoever asks; made and used in one event loop."""

    def __init__(self, llm: LLM, config: ServiceConfig, metrics: ServiceMetrics) -> None:
        """Take over an LLM, which was given metrics.steps as its recorder."""
        self.config = config
        self.codec: TextCodec = llm.engine.codec
        self._llm = llm
        self._engine = AsyncLLM(llm, config.stream_interval_us / 1e6)
        self._metrics = metrics
        self._num_answers = 0  # let in, and not at their ends
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    async def stream(self, request: ServiceRequest) -> AsyncGenerator[StreamItem, None]:
        """Deltas as they come, then the RequestOutput. Closing the iterator cancels the request and frees its pages.

        Raises RequestError for what cannot be served at all, a ServiceError for what cannot be served now.
        """
        record = RequestRecord(request.request_id)
        try:
            with self._place_for(request.params.n), self._service_errors():
                async with aclosing(self._generate(request)) as items:
                    async for item in items:
                        if isinstance(item, OutputDelta):
                            verifications = item.verifications  # found by a search: once
                            record.gain(item, verifications)
                            self._metrics.gain(item, verifications)
                        else:
                            record.finish(item)
                        yield item
        except BaseException as error:
            record.fail(error)
            raise
        finally:
            ended = record.end()
            self._metrics.end(record)
            log_event(ended, logging.ERROR if ended.outcome == "failed" else logging.INFO)

    def check_fits(self, num_answers: int) -> None:
        """Raise RequestError for more answers than may ever run or wait at once, over all prompts of a request."""
        limit = self.config.max_requests
        if num_answers > limit:
            raise RequestError(f"at most {limit} answers, n of each prompt, may run or wait here, found {num_answers}")

    @property
    def status(self) -> ServiceStatus:
        """How the service is now."""
        engine, recent = self._llm.status, self._metrics.recent
        return ServiceStatus(
            running=engine.num_running,
            waiting=engine.num_waiting,
            kv_cache_usage=engine.kv_cache_usage,
            tokens_per_second=recent.tokens_per_second,
            drafts_mean=recent.drafts_mean,
            accepted_drafts_mean=recent.accepted_drafts_mean,
            draining=self._draining,
            failed=self._engine.failure is not None,
        )

    def metric_families(self) -> Sequence[MetricFamily]:
        """Everything that was counted; any thread may ask."""
        return self._metrics.families(self._llm.status)

    async def drain(self, timeout_s: float) -> bool:
        """Let nothing more in and wait for what has begun; False where some of it takes longer."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """End what still runs, with DrainingError, and stop the engine."""
        self._draining = True
        await self._engine.close()

    def _generate(self, request: ServiceRequest) -> AsyncGenerator[StreamItem, None]:
        limit = self.config.request_timeout_s
        timeout_s = limit if request.timeout_s is None else min(limit, request.timeout_s)
        return self._engine.generate(request.prompt, request.params, request.priority, timeout_s)

    @contextmanager
    def _place_for(self, num_answers: int) -> Iterator[None]:
        self._check_room(num_answers)
        self._num_answers += num_answers
        self._idle.clear()
        try:
            yield
        finally:
            self._num_answers -= num_answers
            if self._num_answers == 0:
                self._idle.set()

    def _check_room(self, num_answers: int) -> None:
        limit = self.config.max_requests
        self.check_fits(num_answers)
        if self._engine.failure is not None:
            raise EngineFailedError("the engine has failed")
        if self._draining:
            raise DrainingError("the server is shutting down")
        if self._num_answers + num_answers > limit:
            raise OverloadedError(f"{self._num_answers} answers run or wait, of at most {limit}: try again later")

    @contextmanager
    def _service_errors(self) -> Iterator[None]:
        """What the engine raises, as what clients are told; its own words are in the log's `message`."""
        try:
            yield
        except RequestError:
            raise
        except TimeoutError as error:
            raise DeadlineError(str(error)) from None
        except Exception as error:
            if self._draining and self._engine.failure is None:
                raise DrainingError("the server is shutting down") from error
            logging.getLogger(__name__).error("the engine failed", exc_info=error)
            raise EngineFailedError("the engine failed; its log says why") from error
