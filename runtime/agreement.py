"""How often drafts agree with the model, from what verifications accepted. No torch."""

from __future__ import annotations

# Drafts that a first guess is worth; they are forgotten like others.
_GUESSED_DRAFTS = 8.0


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
