"""Many streams at once, and when their parts came."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

from serving_study.clients import Question, ServingFailure, StreamingClient


@dataclass
class StreamRecord:
    """What one stream brought, and when: seconds since it was asked for."""

    question: Question
    text: str = ""
    part_s: list[float] = field(default_factory=list)  # of parts with text
    end_s: float | None = None  # None where it did not come to its end
    failure: str | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)  # its first part has come

    @property
    def first_s(self) -> float:
        """Time to the first part."""
        return self.part_s[0]

    @property
    def gaps_s(self) -> list[float]:
        """Between parts, each of which is a verification's tokens."""
        return [late - early for early, late in zip(self.part_s, self.part_s[1:], strict=False)]


@dataclass(frozen=True)
class Load:
    """Streams that ran together, and one that came later."""

    records: tuple[StreamRecord, ...]
    late: StreamRecord
    num_running_late: int  # streams that had not ended when the late one's first part came
    seconds: float  # from the first question to the last end


async def follow(client: StreamingClient, record: StreamRecord) -> None:
    """Ask and keep what comes."""
    start = perf_counter()
    try:
        async for text in client.stream(record.question):
            if text:
                record.text += text
                record.part_s.append(perf_counter() - start)
                record.begun.set()
        record.end_s = perf_counter() - start
    except (ServingFailure, OSError) as error:
        record.failure = f"{type(error).__name__}: {error}"
    finally:
        record.begun.set()


async def run_load(client: StreamingClient, questions: Sequence[Question], late: Question) -> Load:
    """All questions at once; the late one once all of them have had their first part."""
    start = perf_counter()
    records = [StreamRecord(question) for question in questions]
    tasks = [asyncio.ensure_future(follow(client, record)) for record in records]
    for record in records:
        await record.begun.wait()
    joiner = StreamRecord(late)
    tasks.append(asyncio.ensure_future(follow(client, joiner)))
    await joiner.begun.wait()
    num_running = sum(record.end_s is None for record in records)
    await asyncio.gather(*tasks)
    return Load(tuple(records), joiner, num_running, perf_counter() - start)
