"""What one run of run.py is asked to do: its prompts, how they are decoded and what is printed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparsespec.builder.config_io import check_range, option, required
from sparsespec.builder.errors import InputError
from sparsespec.runtime.sampling_params import SamplingParams

MAX_PROFILED_STEPS = 1000


@dataclass(frozen=True)
class RunConfig:
    """Prompts, decoding and output."""

    engine_dir: Path = required("engine directory written by build_engine.py")
    input_text: tuple[str, ...] = option((), "prompts, or questions about input_file")
    input_file: Path | None = option(None, "UTF-8 text: the document that input_text asks about, or the only prompt")
    max_output_len: int = option(128, "most new tokens per answer")
    min_tokens: int = option(0, "new tokens before which an answer does not end by itself")
    temperature: float = option(0.0, "0 takes the most likely token, higher values sample")
    top_k: int = option(0, "sample from so many most likely tokens; 0 is all")
    top_p: float = option(1.0, "sample from the most likely tokens that hold this probability together")
    min_p: float = option(0.0, "sample from the tokens of at least this share of the most likely one's probability")
    repetition_penalty: float = option(1.0, "above 1 makes tokens of prompt and answer less likely, below 1 more")
    presence_penalty: float = option(0.0, "taken from the logits of tokens in the answer")
    frequency_penalty: float = option(0.0, "taken from the logits of tokens in the answer, for every occurrence")
    random_seed: int | None = option(None, "seed of sampling; drawn when not given")
    num_return_sequences: int = option(1, "answers per prompt")
    stop: tuple[str, ...] = option((), "texts that end an answer and are not part of it")
    stop_token_ids: tuple[int, ...] = option((), "tokens that end an answer")
    ignore_eos: bool = option(False, "go on after an end-of-sequence token")
    chat_template: bool = option(True, "put each prompt into the model's chat template")
    streaming: bool | None = option(None, "print the answer as it comes; on for one answer when not given")
    compare_plain: bool = option(False, "decode again without speculation and compare tokens and speed")
    json: Path | None = option(None, "write a machine-readable report to this file")
    profile: Path | None = option(
        None, "write what host and GPU do in every step to this file, as Chrome's trace JSON (ui.perfetto.dev)"
    )
    profile_after: int = option(32, "steps without prompts that pass before the GPU's kernels are recorded")
    profile_steps: int = option(64, "steps whose kernels are recorded, some 0.2 MB each")
    nvtx: bool = option(False, "mark the host's work of every step for Nsight Systems, which sees the GPU's beside it")

    def __post_init__(self) -> None:
        self._check_texts()
        for name in ("max_output_len", "num_return_sequences"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not 0 <= self.min_tokens <= self.max_output_len:
            raise InputError(f"min_tokens must be in 0..max_output_len {self.max_output_len}, found {self.min_tokens}")
        if self.random_seed is not None and not 0 <= self.random_seed < 2**63:
            raise InputError(f"random_seed must be in 0..2^63 - 1, found {self.random_seed}")
        if self.streaming and self.num_answers > 1:
            raise InputError(f"streaming shows 1 answer, found {self.num_answers}; leave --streaming away")
        if self.profile is not None and self.nvtx:
            raise InputError("profile and nvtx: expected one of them, found both; Nsight Systems writes its own trace")
        check_range("profile_after", self.profile_after, least=0)
        check_range("profile_steps", self.profile_steps, least=1, most=MAX_PROFILED_STEPS)
        if self.compare_plain and self.temperature != 0:
            raise InputError(
                f"compare_plain needs temperature 0, found {self.temperature}: sampled tokens agree with plain "
                "decoding's in distribution only"
            )

    @property
    def num_answers(self) -> int:
        """Answers over all prompts."""
        return max(1, len(self.input_text)) * self.num_return_sequences

    @property
    def streams(self) -> bool:
        """Whether the answer is printed as it comes."""
        return self.num_answers == 1 if self.streaming is None else self.streaming

    def sampling_params(self) -> SamplingParams:
        """Parameters of every request. Raises RequestError for a value that cannot be used."""
        return SamplingParams(
            max_tokens=self.max_output_len,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.random_seed,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            n=self.num_return_sequences,
        )

    def _check_texts(self) -> None:
        if not self.input_text and self.input_file is None:
            raise InputError("no prompt: expected --input_text, --input_file or both")
        for number, text in enumerate(self.input_text, start=1):
            if not text:
                raise InputError(f"input_text {number} is empty: expected at least 1 character, found 0")
        for text in self.input_text + self.stop:
            if any("\ud800" <= character <= "\udfff" for character in text):  # how Python keeps undecodable bytes
                raise InputError(f"expected UTF-8 text, found {text!r}")
