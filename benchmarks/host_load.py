"""An LLM whose device computes nothing, and requests that keep it full: what is left is the host's own work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from acceptance_study.texts import collect_texts
from host_device import MadeUpDevice
from sparsespec.builder.build_config import BuildConfig
from sparsespec.builder.engine_dir import EngineConfig
from sparsespec.builder.model_config import ModelConfig
from sparsespec.runtime.config import Policy, RuntimeConfig, SpeculationConfig
from sparsespec.runtime.device.executor import Executor
from sparsespec.runtime.device.executor_config import ExecutorConfig
from sparsespec.runtime.device.graph_executor import GraphBatch
from sparsespec.runtime.device.step_buffers import HostMetadata, most_grants
from sparsespec.runtime.llm import LLM
from sparsespec.runtime.loading import LoadedEngine
from sparsespec.runtime.outputs import OutputDelta
from sparsespec.runtime.sampling_params import SamplingParams
from sparsespec.runtime.text import TextCodec
from sparsespec.runtime.tracing import Recorder

VOCAB_SIZE = 4096
TEXT_CHARS = 200_000
PAGE_SIZE = 16


@dataclass(frozen=True)
class Load:
    """What runs at once, and how long requests are."""

    num_requests: int
    policy: Policy
    k: int  # 0 decodes plainly
    acceptance: float  # chance of a draft once those before it are accepted
    prompt_tokens: tuple[int, int]  # fewest, most
    output_tokens: tuple[int, int]
    chunk_size: int
    step_s: float = 0.0  # seconds that the device takes for a step, at least

    @property
    def max_seq_len(self) -> int:
        """Of the longest request."""
        return self.prompt_tokens[1] + self.output_tokens[1]


@dataclass(frozen=True)
class Language:
    """A tokenizer and a text in its tokens."""

    codec: TextCodec
    text: tuple[int, ...]


def trained_language() -> Language:
    """A small byte-level BPE tokenizer as of Llama 3 or Qwen, trained on texts that every installation has."""
    text = "\n".join(each.content for each in collect_texts(TEXT_CHARS, max_texts=1))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    codec = TextCodec(PreTrainedTokenizerFast(tokenizer_object=tokenizer))  # type: ignore[no-untyped-call]
    return Language(codec, tuple(codec.encode(text[:TEXT_CHARS])))


class HostOnlyLLM(LLM):
    """Everything but the device."""

    def __init__(self, language: Language, load: Load, recorder: Recorder) -> None:
        build = _build(load)
        host = HostMetadata(
            load.num_requests,
            most_grants(build, load.num_requests, build.max_draft_len),
            build.max_pages,
            scored=load.k > 0,
        )
        self._device = MadeUpDevice(language.text, load.acceptance, host, build.max_draft_len + 1, load.step_s)
        drafter = SpeculationConfig(k=load.k, min_budget=1) if load.k else SpeculationConfig(drafter="none")
        config = RuntimeConfig(chunk_size=load.chunk_size, policy=load.policy)
        engine = LoadedEngine(EngineConfig(_model(), build), {}, language.codec)
        super().__init__(engine, drafter, config, recorder)

    def _make_executor(self, config: ExecutorConfig) -> Executor[GraphBatch, None]:
        return self._device


class FullHouse:
    """Runs a HostOnlyLLM with as many requests as it has slots: one that ends makes room for the next."""

    def __init__(self, llm: HostOnlyLLM, load: Load) -> None:
        self._llm = llm
        self._load = load
        self._random = Random(0)
        self._num_decoding = 0
        for _ in range(load.num_requests):
            self._join()

    @property
    def is_full(self) -> bool:
        """Whether every slot has had its prompt, so that all decode but those who have just joined."""
        return self._num_decoding >= self._load.num_requests

    def step(self) -> list[OutputDelta]:
        """One step."""
        return self._llm.step()

    def replace_ended(self, deltas: Sequence[OutputDelta]) -> None:
        """Between steps: whoever has ended makes room."""
        for delta in deltas:
            self._num_decoding += delta.part == 0
            if delta.finish_reason is not None:
                self._llm.take_output(delta.request_id)
                self._join()

    def _join(self) -> None:
        seed = self._random.randrange(2**31)
        max_tokens = self._random.randint(*self._load.output_tokens)
        params = SamplingParams(max_tokens=max_tokens, temperature=0.6, top_p=0.95, seed=seed, ignore_eos=True)
        self._llm.add_request([0] * self._random.randint(*self._load.prompt_tokens), params)


def _model() -> ModelConfig:
    """Only its vocabulary matters."""
    return ModelConfig(
        family="llama",
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=64,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=64,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        max_position_embeddings=2**20,
        tie_word_embeddings=True,
        eos_token_ids=(0,),
        rope_scaling=None,
        quantization=None,
    )


def _build(load: Load) -> BuildConfig:
    return BuildConfig(
        dtype="bfloat16",
        max_batch_size=load.num_requests,
        max_seq_len=load.max_seq_len,
        max_num_tokens=load.num_requests * (load.k + 1) + load.chunk_size,
        max_draft_len=max(1, load.k),
        max_budget=load.max_seq_len,
        page_size=PAGE_SIZE,
    )
