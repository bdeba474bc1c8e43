"""AsyncLLM: an LLM behind asyncio. Any number of coroutines await their streams.

One thread runs the step loop and never looks at text. Another one decodes it, finds stop texts, and feeds the streams;
what it finds goes back to the step loop as a command, so that an LLM is only ever called by one thread.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from sparsespec.runtime.llm import LLM
from sparsespec.runtime.outputs import OutputDelta, RequestOutput
from sparsespec.runtime.prompt_input import PromptInput
from sparsespec.runtime.sampling_params import SamplingParams


@dataclass(eq=False)
class _Stream:
    loop: asyncio.AbstractEventLoop
    items: asyncio.Queue[OutputDelta | RequestOutput | BaseException]
    num_growing: int = 0  # answers whose ends the text thread has not seen

    def put(self, item: OutputDelta | RequestOutput | BaseException) -> None:
        """Hand an item to the coroutine; from another thread."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.items.put_nowait, item)


class AsyncLLM:
    """Streams answers while other requests run. Close it, or use it as an async context manager.

    A server calls `freeze_heap` once it has made one: Python's collector then never stops the step loop for long.
    """

    def __init__(self, llm: LLM) -> None:
        """Take over an LLM; nobody else may call it from now on."""
        self._llm = llm
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._streams: dict[int, _Stream] = {}
        self._closed = False  # guarded by _lock: no command enters the queue once it is set
        self._lock = threading.Lock()
        self._texts = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sparsespec-text")
        self._thread = threading.Thread(target=self._run, name="sparsespec-step-loop", daemon=True)
        self._thread.start()

    async def generate(
        self, prompt: PromptInput, sampling_params: SamplingParams = SamplingParams()
    ) -> AsyncIterator[OutputDelta | RequestOutput]:
        """Deltas as they come, then the RequestOutput. Leaving the loop early cancels the request.

        Raises RequestError for a prompt that cannot be served, RuntimeError when closed meanwhile.
        """
        stream = _Stream(asyncio.get_running_loop(), asyncio.Queue())
        if not self._post(lambda: self._submit(prompt, sampling_params, stream)):
            raise RuntimeError("the AsyncLLM is closed")
        try:
            while True:
                item = await stream.items.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if isinstance(item, RequestOutput):
                    return
        finally:
            self._post(lambda: self._abandon(stream))

    async def close(self) -> None:
        """Stop the loop; running requests end with RuntimeError."""
        self._post(self._close)
        await asyncio.to_thread(self._thread.join)

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def _post(self, command: Callable[[], None]) -> bool:
        """Have the step thread run a command; False when it has stopped."""
        with self._lock:
            if not self._closed:
                self._commands.put(command)
            return not self._closed

    def _run(self) -> None:
        try:
            while not self._closed:
                self._take_commands()
                if self._llm.has_requests:
                    self._step()
        except BaseException as error:  # a failed step ends every stream; nothing may wait for ever
            self._fail_all(error)
            raise
        finally:
            self._texts.shutdown()

    def _take_commands(self) -> None:
        """Run what coroutines asked for; wait for something to ask when there is nothing to do."""
        if not self._llm.has_requests:
            self._commands.get()()
        while not self._commands.empty():
            self._commands.get()()

    def _step(self) -> None:
        grown = [(self._streams[delta.request_id], delta) for delta in self._llm.advance()]
        if grown:
            self._texts.submit(self._read_texts, grown)

    def _read_texts(self, grown: Sequence[tuple[_Stream, OutputDelta]]) -> None:
        """In the text thread, in the order of the steps."""
        try:
            with self._llm.recorder.span("text"):
                for stream, delta in grown:
                    self._read_text(stream, delta)
        except BaseException as error:  # nothing may wait for ever here either
            self._post(partial(self._fail_all, error))

    def _read_text(self, stream: _Stream, given: OutputDelta) -> None:
        delta = given.up_to_stop()
        if delta is None:
            return  # an answer had ended before the step loop knew
        _ = delta.text  # decoded here
        stream.put(delta)
        if delta.finish_reason is not None:
            stream.num_growing -= 1
            self._post(partial(self._end_answer, stream, delta, last=stream.num_growing == 0))

    def _end_answer(self, stream: _Stream, delta: OutputDelta, last: bool) -> None:
        """The text thread has seen the end of an answer, and of its request if it is the last."""
        if self._streams.get(delta.request_id) is not stream:
            return  # its caller has left meanwhile
        self._llm.settle(delta)
        if last:
            self._streams.pop(delta.request_id).put(self._llm.take_output(delta.request_id))

    def _submit(self, prompt: PromptInput, sampling_params: SamplingParams, stream: _Stream) -> None:
        try:
            self._streams[self._llm.add_request(prompt, sampling_params)] = stream
            stream.num_growing = sampling_params.n
        except Exception as error:  # whatever is wrong with one request is told to its caller alone
            stream.put(error)

    def _abandon(self, stream: _Stream) -> None:
        for request_id in [number for number, known in self._streams.items() if known is stream]:
            self._llm.forget(request_id)
            self._streams.pop(request_id)

    def _close(self) -> None:
        self._fail_all(RuntimeError("the AsyncLLM was closed"))

    def _fail_all(self, error: BaseException) -> None:
        """Let nothing in, take what came in before, then end all of it."""
        with self._lock:
            self._closed = True
        while not self._commands.empty():
            self._commands.get()()
        for stream in self._streams.values():
            stream.put(error)
        for request_id in self._streams:
            self._llm.forget(request_id)
        self._streams.clear()
