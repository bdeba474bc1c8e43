"""LLM: an engine, its scheduler and the loop that reads like the paper."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from sparsespec.builder.engine_dir import read_engine_config
from sparsespec.builder.errors import RequestError
from sparsespec.builder.trt.engine_io import max_pool_pages
from sparsespec.runtime.adaptive_cycles import AdaptiveCycles
from sparsespec.runtime.admission import AdmissionRules
from sparsespec.runtime.answer_text import AnswerText
from sparsespec.runtime.answers import Answer, SubmittedRequest
from sparsespec.runtime.chooser import Choice
from sparsespec.runtime.config import RuntimeConfig, SpeculationConfig
from sparsespec.runtime.cycles import Cycles
from sparsespec.runtime.device.cycle_choice import choose_cycles
from sparsespec.runtime.device.executor import Executor
from sparsespec.runtime.device.executor_config import ExecutorConfig
from sparsespec.runtime.device.step_choice import choose_steps
from sparsespec.runtime.device.tensorrt_executor import TensorRTExecutor
from sparsespec.runtime.device.torch_executor import TorchExecutor
from sparsespec.runtime.engine_status import EngineStatus
from sparsespec.runtime.kv_cache import KvCacheManager
from sparsespec.runtime.loading import LoadedEngine, load_engine
from sparsespec.runtime.outputs import OutputDelta, RequestOutput
from sparsespec.runtime.prompt_input import Prompt, PromptInput, list_prompts
from sparsespec.runtime.request import DraftShape, Request
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.scheduler import Scheduler, SchedulerLimits
from sparsespec.runtime.step_counts import StepCounter
from sparsespec.runtime.step_loop import StepVerbs, make_loop
from sparsespec.runtime.text import ChatInput, list_messages
from sparsespec.runtime.tracing import NoRecorder, Recorder


class LLM:
    """Generates text with an engine directory; requests join and leave the running batch at any step.

    Not thread-safe: one thread calls it (AsyncLLM does that for asyncio callers).
    """

    def __init__(
        self,
        engine: str | Path | LoadedEngine,
        speculation: SpeculationConfig = SpeculationConfig(),
        config: RuntimeConfig = RuntimeConfig(),
        recorder: Recorder | None = None,
        cycles: Cycles | None = None,
    ) -> None:
        """Load an engine directory, or share a loaded one, whose device then counts instead of config.device.

        recorder: told of every step's verbs and counts (`runtime.tracing`).
        cycles: how many drafts each cycle has, up to speculation.k; as speculation says when not given.

        Raises EngineError for a bad directory, InputError for choices beyond the engine or the memory.
        """
        build = (engine.config if isinstance(engine, LoadedEngine) else read_engine_config(Path(engine))).build
        speculation.check_engine(build)
        config.check_engine(build, speculation)
        self.engine = engine if isinstance(engine, LoadedEngine) else load_engine(Path(engine), config)
        self.speculation = speculation
        self.config = config
        executor = self._executor_config()
        self.kv_cache = KvCacheManager(executor.num_pages, self.engine.config.build.page_size, executor.num_host_pages)
        self._executor: Executor[Any, Any] = self._make_executor(executor)
        self._cycles = self._choose_cycles() if cycles is None else cycles
        self._scheduler = self._make_scheduler(executor.max_batch_size)
        kv_cache_tokens = executor.num_pages * self.kv_cache.page_size
        drafts = DraftShape(speculation.draft_len, speculation.num_draft_steps)
        self._rules = AdmissionRules(self.engine.config, self.engine.codec, drafts, kv_cache_tokens)
        self.recorder = NoRecorder() if recorder is None else recorder
        counter = StepCounter(self._scheduler, speculation, self.kv_bytes_per_token)
        self._loop = make_loop(StepVerbs(self._scheduler, self._executor, self.recorder, counter), config.result_lag)
        self._requests: dict[int, SubmittedRequest] = {}  # by the id that the caller holds
        self._answer_of: dict[int, Answer] = {}  # by the id of the answer's own request
        self._next_id = 0

    def generate(
        self, prompts: PromptInput | Sequence[PromptInput], sampling_params: SamplingParams = SamplingParams()
    ) -> list[RequestOutput]:
        """Answer prompts (texts or token ids), in their order. Raises RequestError before any of them starts.

        Requests submitted before run along; their deltas of these steps go to nobody, take_output has everything.
        """
        read = [self._rules.read_prompt(prompt) for prompt in list_prompts(prompts)]
        for prompt in read:
            self._rules.specs(0, prompt.token_ids, sampling_params)
        request_ids = [self._submit(prompt, sampling_params) for prompt in read]
        try:
            with closing(self.run(request_ids)) as steps:
                for _ in steps:
                    pass
        finally:
            outputs = [self.take_output(request_id) for request_id in request_ids]
        return outputs

    def run(self, request_ids: Sequence[int]) -> Generator[list[OutputDelta], None, None]:
        """Step until these requests have ended, yielding what each step brought; others run along.

        Closing the iterator early, or an error, cancels those that are still running.
        """
        try:
            for request_id in request_ids:
                while self.is_running(request_id):
                    yield self.step()
        finally:
            for request_id in request_ids:
                self.cancel(request_id)

    def add_request(
        self, prompt: PromptInput, sampling_params: SamplingParams = SamplingParams(), priority: int = 0
    ) -> int:
        """Submit a prompt; returns its id. Raises RequestError, which leaves all other requests as they are.

        priority: those that wait for a place in the batch are let in by it, the lowest number first.
        """
        return self._submit(self._rules.read_prompt(prompt), sampling_params, priority)

    def step(self) -> list[OutputDelta]:
        """Start one step and take the results of the step result_lag before it; returns what answers gained."""
        deltas = self.advance()
        if not any(delta.answer_text.may_stop for delta in deltas):
            return deltas
        kept = [delta for delta in [each.up_to_stop() for each in deltas] if delta is not None]
        for delta in kept:
            self.settle(delta)
        return kept

    def advance(self) -> list[OutputDelta]:
        """As `step`, but looks at no text: that is for the caller, who applies `up_to_stop` and `settle` to each delta.

        Both may come some steps later, and `up_to_stop` in another thread; outputs are the same.
        """
        with self.recorder.span("step"):
            progress = self._loop.step()
        deltas = [self._answer_of[request.request_id].grow(tokens) for request, tokens in progress]
        self._let_pass()
        return deltas

    def settle(self, delta: OutputDelta) -> None:
        """End the answer of a delta of `up_to_stop` where that found a stop text."""
        stop = delta.answer_text.stop
        if stop is not None and stop.part == delta.part:
            answer = self._known(delta.request_id).answers[delta.index]
            self._scheduler.stop(answer.request, stop.num_tokens, stop.text)
            self._let_pass()

    def cancel(self, request_id: int) -> None:
        """End a request in any phase; its pages come free once the steps in flight have passed."""
        for answer in self._known(request_id).answers:
            if answer.request.finish_reason is None:
                self._scheduler.cancel(answer.request)
        self._let_pass()

    def forget(self, request_id: int) -> None:
        """Cancel a request whose output nobody wants."""
        self.cancel(request_id)
        for answer in self._requests.pop(request_id).answers:
            self._answer_of.pop(answer.request.request_id)

    def take_output(self, request_id: int) -> RequestOutput:
        """What a request has produced; once taken, it is forgotten if it has finished."""
        output = self._known(request_id).output()
        if output.finished:
            self.forget(request_id)
        return output

    def is_running(self, request_id: int) -> bool:
        """Whether any answer to the request is still growing."""
        return any(answer.request.finish_reason is None for answer in self._known(request_id).answers)

    @property
    def executor(self) -> Executor[Any, Any]:
        """What runs the steps, for inspection."""
        return self._executor

    @property
    def choice(self) -> Choice | None:
        """What speculation.adaptive decodes with now, and the speeds that it expects; None where nothing is chosen."""
        return self._cycles.chooser.choice if isinstance(self._cycles, AdaptiveCycles) else None

    @property
    def kv_bytes_per_token(self) -> int:
        """What a token keeps in the KV cache, over all layers."""
        engine = self.engine.config
        return engine.model.kv_bytes_per_token(engine.build.kv_element_size)

    @property
    def has_requests(self) -> bool:
        """Whether any request waits or runs."""
        return self._scheduler.has_requests

    def read_prompt(self, given: PromptInput) -> Prompt:
        """Encode a text, or check token ids, as `add_request` does; any thread may. Raises RequestError."""
        return self._rules.read_prompt(given)

    def encode_chat(self, chat: ChatInput) -> list[int]:
        """Token ids of a chat, or of one message of a user, in the model's chat template; any thread may ask.

        Raises RequestError where that cannot be.
        """
        return list(self.read_prompt(list_messages(chat)).token_ids)

    @property
    def status(self) -> EngineStatus:
        """How full the engine is; any thread may ask, and reads numbers that may be a step apart."""
        return EngineStatus(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_pages=self.kv_cache.num_pages,
            num_used_pages=self.kv_cache.num_pages - self.kv_cache.num_free_pages,
        )

    def _submit(self, prompt: Prompt, sampling_params: SamplingParams, priority: int = 0) -> int:
        request_id = self._next_id
        specs = self._rules.specs(request_id, prompt.token_ids, sampling_params, priority)
        answers = [self._new_answer(request_id, index, self._scheduler.add(spec)) for index, spec in enumerate(specs)]
        self._requests[request_id] = SubmittedRequest(request_id, prompt, answers)
        self._answer_of |= {answer.request.request_id: answer for answer in answers}
        self._next_id += len(specs)
        return request_id

    def _new_answer(self, request_id: int, index: int, request: Request) -> Answer:
        text = AnswerText(request, self.engine.codec.stream(request.spec.params.stop))
        return Answer(request_id, index, request, text)

    def _let_pass(self) -> None:
        """Nobody is left to gain anything from the steps in flight: they only have to pass."""
        if not self.has_requests:
            self._loop.drain()

    def _known(self, request_id: int) -> SubmittedRequest:
        if request_id not in self._requests:
            raise RequestError(f"request {request_id} is unknown: never submitted, or its output was taken")
        return self._requests[request_id]

    def _executor_config(self) -> ExecutorConfig:
        config, model, build = self.config, self.engine.config.model, self.engine.config.build
        page_bytes = build.page_size * model.kv_bytes_per_token(build.kv_element_size)
        size = config.max_batch_size or build.max_batch_size
        full_batch = size * build.max_pages
        most = full_batch
        if self.engine.engines is not None:
            most = min(full_batch, max_pool_pages(model, build))
        tokens = config.max_tokens_in_paged_kv_cache
        return ExecutorConfig(
            max_batch_size=size,
            num_pages=most if tokens is None else min(-(-tokens // build.page_size), most),
            attention=config.attention,
            cuda_graphs=config.cuda_graphs,
            num_host_pages=min(config.num_host_pages(page_bytes), full_batch),
            plugin_library=None if config.plugin_library is None else Path(config.plugin_library),
        )

    def _make_executor(self, config: ExecutorConfig) -> Executor[Any, Any]:
        engine = self.engine
        if engine.engines is None:
            eager = TorchExecutor(engine.config, engine.weights, self.speculation, config)
            return choose_steps(eager, config.cuda_graphs, engine.config.build) or eager
        return TensorRTExecutor(engine.config, engine.weights, self.speculation, config, engine.engines)

    def _choose_cycles(self) -> Cycles:
        return choose_cycles(self._executor, self.engine.config, self.speculation, self.config.policy)

    def _make_scheduler(self, max_batch_size: int) -> Scheduler:
        sizes = SchedulerLimits(max_batch_size, self.engine.config.build.max_num_tokens, self.config.chunk_size)
        return Scheduler(sizes, self.kv_cache, self._cycles)
