"""What a load amounts to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving_study.load import Load


@dataclass(frozen=True)
class Percentiles:
    """Seconds."""

    p50_s: float
    p99_s: float
    most_s: float

    @staticmethod
    def of(values: Sequence[float]) -> Percentiles:
        """Of at least one value."""
        p50, p99 = np.percentile(values, [50, 99])
        return Percentiles(float(p50), float(p99), max(values))


@dataclass(frozen=True)
class LoadFigures:
    """Of streams that ran together; the latecomer is not one of them."""

    num_streams: int
    num_ended: int  # that came to their ends
    num_equal: int  # whose text is that of the same prompt, answered offline
    num_tokens: int  # of all answers, offline's count
    seconds: float
    mean_batch: float  # answers in a step
    first_part: Percentiles
    between_parts: Percentiles
    whole: Percentiles
    late_first_part_s: float
    late_is_equal: bool
    num_running_late: int  # streams that had not ended when the latecomer's first part came

    @property
    def tokens_per_second(self) -> float:
        """Over the whole load, the latecomer's included."""
        return self.num_tokens / self.seconds


def load_figures(load: Load, expected: Sequence[str], num_tokens: int, mean_batch: float) -> LoadFigures:
    """expected: offline texts in the order of the records, then the latecomer's. Raises ValueError where none began."""
    records = load.records
    begun = [record for record in records if record.part_s]
    if not begun or not load.late.part_s:
        raise ValueError(f"expected streams with text, found {[record.failure for record in (*records, load.late)]}")
    return LoadFigures(
        num_streams=len(records),
        num_ended=sum(record.end_s is not None for record in records),
        num_equal=sum(record.text == text for record, text in zip(records, expected, strict=False)),
        num_tokens=num_tokens,
        seconds=load.seconds,
        mean_batch=mean_batch,
        first_part=Percentiles.of([record.first_s for record in begun]),
        between_parts=Percentiles.of([gap for record in begun for gap in record.gaps_s]),
        whole=Percentiles.of([record.end_s for record in records if record.end_s is not None]),
        late_first_part_s=load.late.first_s,
        late_is_equal=load.late.text == expected[len(records)],
        num_running_late=load.num_running_late,
    )
