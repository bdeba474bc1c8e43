"""How one request is decoded; names and meanings as in vLLM and the TensorRT-LLM LLM API."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property

from sparsespec.builder.config_io import MAX_INT, check_types, shown
from sparsespec.builder.errors import InputError, RequestError
from sparsespec.builder.model_config import MAX_EOS_TOKEN_IDS

MAX_LOGPROBS = 20
MAX_STOP_TOKEN_IDS = MAX_EOS_TOKEN_IDS
MAX_STOP_TEXTS, MAX_STOP_CHARS = 64, 1024
MAX_TEMPERATURE = 1000
MAX_ANSWERS = 1024


@dataclass(frozen=True)
class SamplingParams:
    """Sampling and stopping of one request. Raises RequestError with the offending value.

    max_tokens: most new tokens; also bounded by the engine's max_seq_len.
    min_tokens: end-of-sequence and stop tokens are not sampled before that many.
    temperature: 0 is greedy.
    top_k: 0 keeps every token.
    min_p: keeps the tokens of at least that share of the most likely one's probability.
    repetition_penalty: divides the positive logits, and multiplies the others, of tokens in the prompt or the answer
        (Keskar et al. 2019); 1 for none. Penalties also apply to greedy decoding.
    presence_penalty, frequency_penalty: subtracted from the logits of tokens in the answer, once or for every
        occurrence; 0 for none.
    seed: None draws one.
    stop: texts that end the answer, not part of it; at most 64, of at most 1024 characters.
    n: answers per prompt, seeded seed, seed + 1, ...
    logprobs: alternatives reported per token, None for no log-probabilities. They are the model's own: penalties,
        masks, temperature and cuts do not change them.
    speculate: False decodes plainly; the output distribution is the same.
    """

    max_tokens: int = 128
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    speculate: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else _as_tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", _as_tuple(self.stop_token_ids))
        self._check_types()
        self._check_lengths()
        self._check_distribution()
        _require(1 <= self.n <= MAX_ANSWERS, "n", self.n, f"in 1..{MAX_ANSWERS}")
        if self.logprobs is not None:
            _require(0 <= self.logprobs <= MAX_LOGPROBS, "logprobs", self.logprobs, f"in 0..{MAX_LOGPROBS}")
        if self.seed is not None:
            _require(0 <= self.seed < 2**63, "seed", self.seed, "in 0..2^63 - 1")

    def _check_types(self) -> None:
        try:
            check_types(self)
        except InputError as error:
            raise RequestError(str(error)) from None

    def _check_lengths(self) -> None:
        _require(1 <= self.max_tokens <= MAX_INT, "max_tokens", self.max_tokens, f"in 1..{MAX_INT}")
        _require(0 <= self.min_tokens <= self.max_tokens, "min_tokens", self.min_tokens, "in 0..max_tokens")
        fits = len(self.stop) <= MAX_STOP_TEXTS and all(0 < len(stop) <= MAX_STOP_CHARS for stop in self.stop)
        _require(fits, "stop", self.stop, f"at most {MAX_STOP_TEXTS} texts of 1..{MAX_STOP_CHARS} characters")
        few = len(self.stop_token_ids) <= MAX_STOP_TOKEN_IDS
        _require(few, "stop_token_ids", self.stop_token_ids, f"at most {MAX_STOP_TOKEN_IDS} tokens")

    def _check_distribution(self) -> None:
        """NaN is in no range: no comparison with it holds."""
        in_range = 0 <= self.temperature <= MAX_TEMPERATURE
        _require(in_range, "temperature", self.temperature, f"in 0..{MAX_TEMPERATURE}")
        _require(0 <= self.top_k <= MAX_INT, "top_k", self.top_k, f"in 0..{MAX_INT} (0: all)")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        _require(0 <= self.min_p <= 1, "min_p", self.min_p, "in [0, 1]")
        _require(0 < self.repetition_penalty <= 2, "repetition_penalty", self.repetition_penalty, "in (0, 2]")
        _require(-2 <= self.presence_penalty <= 2, "presence_penalty", self.presence_penalty, "in [-2, 2]")
        _require(-2 <= self.frequency_penalty <= 2, "frequency_penalty", self.frequency_penalty, "in [-2, 2]")

    @property
    def needs(self) -> SamplingNeeds:
        """What sampling has to compute for this request beside the most likely token."""
        needs = SamplingNeeds(
            penalties=self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0,
            probabilities=self.temperature > 0,
            cuts=self.temperature > 0 and (self.min_p > 0 or self.top_k > 0 or self.top_p < 1),
            logprobs=self.logprobs,
            early_stops=self.min_tokens > 0,
        )
        return _shared(needs)


@dataclass(frozen=True)
class SamplingNeeds:
    """Known to the host before a step, so that a step of greedy requests computes no softmax and waits for nothing."""

    penalties: bool
    probabilities: bool
    cuts: bool
    logprobs: int | None  # alternatives to tell of each token; None: nothing is told
    early_stops: bool  # stop tokens are masked while too early

    @cached_property  # asked of every row of every step
    def beyond_cuts(self) -> bool:
        """Whether logits are changed before temperature and cuts, or more is asked for than tokens."""
        return self.penalties or self.logprobs is not None or self.early_stops


@dataclass(frozen=True)
class LogitNeeds:
    """What is done with a step's logits beside sampling: what any of its requests needs."""

    penalties: bool = False
    early_stops: bool = False
    logprobs: bool = False

    @staticmethod
    def of(needs: Iterable[SamplingNeeds]) -> LogitNeeds:
        """Of requests that share a step."""
        asked = [each for each in needs if each.beyond_cuts]
        return LogitNeeds(
            penalties=any(each.penalties for each in asked),
            early_stops=any(each.early_stops for each in asked),
            logprobs=any(each.logprobs is not None for each in asked),
        )


SAMPLING_ALONE = LogitNeeds()


@cache
def _shared(needs: SamplingNeeds) -> SamplingNeeds:
    """One object for all requests that need the same: every step looks at every row's."""
    return needs


def _as_tuple(value: object) -> object:
    """Callers of vLLM pass lists and None; anything else is for the type check to refuse."""
    return () if value is None else tuple(value) if isinstance(value, list) else value


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise RequestError(f"{name} must be {expected}, found {shown(value)}")
