"""AsyncLLM: an LLM behind asyncio. Any number of coroutines await their streams.

One thread runs the step loop and never looks at text. Another one decodes it, finds stop texts, and feeds the streams;
what it finds goes back to the step loop as a command, so that an LLM is only ever called by one thread. A third one
makes tokens of prompts.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from time import monotonic

from sparsespec.runtime.llm import LLM
from sparsespec.runtime.outputs import OutputDelta, RequestOutput
from sparsespec.runtime.prompt_input import Prompt, PromptInput
from sparsespec.runtime.sampling_params import SamplingParams

StreamItem = OutputDelta | RequestOutput


@dataclass(eq=False)
class _Stream:
    loop: asyncio.AbstractEventLoop
    items: asyncio.Queue[StreamItem | BaseException]
    num_growing: int = 0  # answers whose ends the text thread has not seen
    held: dict[int, OutputDelta] = field(default_factory=dict)  # of answers, by index, what is to be handed over later
    handed_s: dict[int, float] = field(default_factory=dict)  # when something of an answer was handed over

    def put(self, item: StreamItem | BaseException) -> None:
        """Hand an item to the coroutine; from another thread."""
        _hand_over([(self, item)])


def _hand_over(found: Sequence[tuple[_Stream, StreamItem | BaseException]]) -> None:
    """Hand items to their coroutines, waking each event loop once."""
    for loop in dict.fromkeys(stream.loop for stream, _ in found):
        if not loop.is_closed():
            loop.call_soon_threadsafe(_put_all, [(stream, item) for stream, item in found if stream.loop is loop])


def _put_all(found: Sequence[tuple[_Stream, StreamItem | BaseException]]) -> None:
    for stream, item in found:
        stream.items.put_nowait(item)


class AsyncLLM:
    """Streams answers while other requests run. Close it, or use it as an async context manager.

    A server calls `freeze_heap` once it has made one: Python's collector then never stops the step loop for long.
    """

    def __init__(self, llm: LLM, stream_interval_s: float = 0.0) -> None:
        """Take over an LLM; nobody else may call it from now on.

        stream_interval_s: an answer's deltas are put together until so long, times the requests at work, has passed
            since its last; its first and its last are not kept waiting. 0 hands over each step's.
        """
        self._llm = llm
        self._stream_interval_s = stream_interval_s
        self.failure: BaseException | None = None  # what ended it, if that was an error
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._streams: dict[int, _Stream] = {}
        self._closed = False  # guarded by _lock: no command enters the queue once it is set
        self._lock = threading.Lock()
        self._texts = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sparsespec-text")
        self._prompts = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sparsespec-prompts")
        self._thread = threading.Thread(target=self._run, name="sparsespec-step-loop", daemon=True)
        self._thread.start()

    async def generate(
        self,
        prompt: PromptInput,
        sampling_params: SamplingParams = SamplingParams(),
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[StreamItem, None]:
        """Deltas as they come, then the RequestOutput. Leaving the loop early cancels the request.

        priority: those that wait for a place in the batch are let in by it, the lowest number first.

        Raises RequestError for a prompt that cannot be served, TimeoutError once timeout_s has passed, RuntimeError
        when closed meanwhile.
        """
        loop = asyncio.get_running_loop()
        stream = _Stream(loop, asyncio.Queue())
        late = TimeoutError(f"the answer took longer than {timeout_s} s")
        timer = None if timeout_s is None else loop.call_later(timeout_s, stream.items.put_nowait, late)
        try:
            await self._read_and_submit(prompt, sampling_params, priority, stream)
            while True:
                item = await stream.items.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if isinstance(item, RequestOutput):
                    return
        finally:
            if timer is not None:
                timer.cancel()
            self._post(partial(self._abandon, stream))

    async def _read_and_submit(
        self, prompt: PromptInput, sampling_params: SamplingParams, priority: int, stream: _Stream
    ) -> None:
        """Tokens are made here: a long prompt would stop the step loop for a while."""
        if self._closed:
            raise RuntimeError("the AsyncLLM is closed")
        read = await stream.loop.run_in_executor(self._prompts, self._llm.read_prompt, prompt)
        if not self._post(partial(self._submit, read, sampling_params, priority, stream)):
            raise RuntimeError("the AsyncLLM is closed")

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
            self._break(error)
            raise
        finally:
            self._texts.shutdown()
            self._prompts.shutdown()

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
                self._hand_out([(stream, self._read_text(stream, delta)) for stream, delta in grown])
        except BaseException as error:  # nothing may wait for ever here either
            self._post(partial(self._break, error))

    def _hand_out(self, read: Sequence[tuple[_Stream, OutputDelta | BaseException | None]]) -> None:
        """To the streams, and to the step loop who has come to an end."""
        _hand_over([(stream, item) for stream, item in read if item is not None])
        for stream, item in read:
            if isinstance(item, OutputDelta):
                self._note_end(stream, item)
            elif item is not None:
                self._post(partial(self._abandon, stream))

    def _read_text(self, stream: _Stream, given: OutputDelta) -> OutputDelta | BaseException | None:
        """What the stream gets now: a delta with its text, or what decoding failed with, which ends it alone."""
        try:
            delta = given.up_to_stop()
            if delta is None:
                return None  # an answer had ended before the step loop knew
            held = stream.held.pop(delta.index, None)
            whole = delta if held is None else held.with_next(delta)
            if not self._is_due(stream, whole):
                stream.held[delta.index] = whole
                return None
            _ = whole.text  # decoded here
            return whole
        except BaseException as error:
            return error

    def _is_due(self, stream: _Stream, delta: OutputDelta) -> bool:
        now, last = monotonic(), stream.handed_s.get(delta.index)
        wait_s = self._stream_interval_s * len(self._streams)
        if delta.finish_reason is None and last is not None and now - last < wait_s:
            return False
        stream.handed_s[delta.index] = now
        return True

    def _note_end(self, stream: _Stream, delta: OutputDelta) -> None:
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

    def _submit(self, prompt: Prompt, sampling_params: SamplingParams, priority: int, stream: _Stream) -> None:
        try:
            self._streams[self._llm.add_request(prompt, sampling_params, priority)] = stream
            stream.num_growing = sampling_params.n
        except Exception as error:  # whatever is wrong with one request is told to its caller alone
            stream.put(error)

    def _abandon(self, stream: _Stream) -> None:
        for request_id in [number for number, known in self._streams.items() if known is stream]:
            self._llm.forget(request_id)
            self._streams.pop(request_id)

    def _break(self, error: BaseException) -> None:
        self.failure = error
        self._fail_all(error)

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
