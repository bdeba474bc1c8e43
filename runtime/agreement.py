"""How often drafts agree with the model, from what verifications accepted. No torch."""

from __future__ import annotations

from sparsespec.runtime.cost_model import DraftReads

# Drafts that a first guess is worth; they are forgotten like others.
_GUESSED_DRAFTS = 8.0
_KEEP_OF_ALL = 0.99
# Of two budgets, drafts fail less often with the larger one, by the budgets' ratio to this power: SmolLM2-135M at 4k,
# ratios from 0.025 to 0.2 (docs/performance.md).
_FAILURES_BY_BUDGET = 0.7
# Verifications after which a new budget is known, and by how much they may correct what was expected of it at once.
_SETTLED = 64
_MOST_CORRECTED = 16.0
_FEWEST_FAILURES = 0.005


class Agreement:
    """A share of drafts, the newest verifications weighing most. Drafts after the first that fails were never tried."""

    def __init__(self, keep: float, guess: float) -> None:
        """keep: weight of the past at every verification. guess: the share before the first one."""
        self._keep = keep
        self._agreed = guess * _GUESSED_DRAFTS
        self._tried = _GUESSED_DRAFTS

    @property
    def share(self) -> float:
        """Probability that the next draft agrees."""
        return self._agreed / self._tried

    def observe(self, num_drafts: int, num_accepted: int) -> None:
        """A verification of at least one draft."""
        self._agreed = self._keep * self._agreed + num_accepted
        self._tried = self._keep * self._tried + min(num_accepted + 1, num_drafts)


class AgreementByReads:
    """Agreement of everybody's drafts with what they read now, and what it would be if they read more or less.

    That is first what was measured elsewhere, and then corrected by what came of each change here.
    """

    def __init__(self, guess: float, reads: DraftReads) -> None:
        """guess: the share before the first verification. reads: of drafts now."""
        self._reads = reads
        self._now = Agreement(_KEEP_OF_ALL, guess)
        self._expected: float | None = None  # of the last change, if there was one
        self._num_seen = 0  # verifications since then
        self._corrections: dict[DraftReads, float] = {}  # of failures, where something is known

    @property
    def share(self) -> float:
        """Probability that the next draft agrees."""
        return self._now.share

    @property
    def settled(self) -> bool:
        """Whether enough was seen of what drafts read now to think of a change."""
        return self._num_seen >= _SETTLED

    def of(self, reads: DraftReads, context: float) -> float:
        """The probability if drafts read so."""
        budgets = max(1.0, self._reads.budget(context)) / max(1.0, reads.budget(context))
        corrections = self._corrections.get(reads, 1.0) / self._corrections.get(self._reads, 1.0)
        failures = (1 - self._now.share) * budgets**_FAILURES_BY_BUDGET * corrections
        return self._now.share if reads == self._reads else max(0.0, 1 - failures)

    def change(self, reads: DraftReads, context: float) -> None:
        """From now on drafts read so."""
        self._expected = self.of(reads, context)
        self._now = Agreement(_KEEP_OF_ALL, self._expected)
        self._reads = reads
        self._num_seen = 0

    def observe(self, num_drafts: int, num_accepted: int) -> None:
        """A verification of at least one draft, of a cycle that read as cycles do now."""
        self._now.observe(num_drafts, num_accepted)
        self._num_seen += 1
        if self._num_seen == _SETTLED and self._expected is not None:
            self._correct(self._expected)

    def _correct(self, share: float) -> None:
        found, expected = (max(_FEWEST_FAILURES, 1 - each) for each in (self._now.share, share))
        change = min(_MOST_CORRECTED, max(1 / _MOST_CORRECTED, found / expected))
        self._corrections[self._reads] = self._corrections.get(self._reads, 1.0) * change
