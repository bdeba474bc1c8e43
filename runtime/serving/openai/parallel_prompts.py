"""All prompts of a request at once: what comes of them, in the order in which it comes.

What a client has not taken yet waits in a queue here: an answer's place in the service comes free when the answer has
ended, however slowly it is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple

from sparsespec.runtime.outputs import OutputDelta, RequestOutput
from sparsespec.runtime.serving.service import Service, ServiceRequest


class PromptItem(NamedTuple):
    """What one prompt's answers gained, or in the end all of them."""

    prompt: int
    item: OutputDelta | RequestOutput


async def run_prompts(service: Service, requests: Sequence[ServiceRequest]) -> AsyncGenerator[PromptItem, None]:
    """Deltas of all, and of each its RequestOutput last. An error of one ends all; closing the generator too."""
    service.check_fits(sum(request.params.n for request in requests))
    items: asyncio.Queue[PromptItem | Exception] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(service, number, request, items)) for number, request in enumerate(requests)]
    num_running = len(pumps)
    try:
        while num_running:
            item = await items.get()
            if isinstance(item, Exception):
                raise item
            yield item
            num_running -= isinstance(item.item, RequestOutput)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(
    service: Service, number: int, request: ServiceRequest, items: asyncio.Queue[PromptItem | Exception]
) -> None:
    try:
        async with aclosing(service.stream(request)) as stream:
            async for item in stream:
                items.put_nowait(PromptItem(number, item))
    except Exception as error:  # told to whoever reads the queue
        items.put_nowait(error)
