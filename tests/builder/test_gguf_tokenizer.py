from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf import TokenType
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import GPT2Converter, Qwen2Converter, TikTokenConverter

from sparsespec.builder.checkpoint.gguf_reader import GgufMetadata
from sparsespec.builder.checkpoint.gguf_tokenizer import build_tokenizer
from sparsespec.builder.errors import CheckpointError
from sparsespec.runtime.text import TextCodec
from tiny_gguf import finish
from tiny_models import CHAT_TEMPLATE

TEXTS = [
    "",
    " ",
    "The cat's hat, I'll say; it'd'VE been 'RE we'Llama 'SAM'sam",
    "12345 6 1234567890 3.14 x12y ½ Ⅷ ٣٤٥",
    "  two  spaces\n\n\nand\r\n \t tabs \n end  ",
    "def f(x):\n    return {'a': [1, 2]} # ok!!\n",
    "nai\u0308ve cafe\u0301 A\u030a 東京タワー 한글 😀👩‍🚀 \u2009\u3000x",
    "don't1can't 'tis ''s $5 <=> ^^~~ a|b",
]
ADDED = {"<|eos|>": TokenType.CONTROL, "<|user|>": TokenType.CONTROL, "<think>": TokenType.USER_DEFINED}


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file keeps of a tokenizer: every token's type, and merges or scores."""

    model: str
    types: Mapping[str, int]
    merges: tuple[tuple[str, str], ...] = ()
    scores: tuple[float, ...] = ()

    @property
    def ids(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.types)}


def trained_vocabulary() -> Vocabulary:
    """Byte-level tokens that join anything with anything, where the text is not split first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=800, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    words = dict.fromkeys(sorted(model["vocab"], key=model["vocab"].get), TokenType.NORMAL)
    return Vocabulary("gpt2", {**words, **ADDED}, tuple((left, right) for left, right in model["merges"]))


BYTES = trained_vocabulary()
BOS = BYTES.ids["<|user|>"]


def metadata(path: Path, vocabulary: Vocabulary, options: Mapping[str, str | int | bool]) -> GgufMetadata:
    """A file that holds a tokenizer only; `options` are keys under `tokenizer.ggml`."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_token_list(list(vocabulary.types))
    writer.add_token_types(list(vocabulary.types.values()))
    if vocabulary.merges:
        writer.add_token_merges([" ".join(merge) for merge in vocabulary.merges])
    if vocabulary.scores:
        writer.add_token_scores(list(vocabulary.scores))
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, value in options.items():
        writer.add_key_value(f"tokenizer.ggml.{name}", value, gguf.GGUFValueType.get_type(value))
    finish(writer)
    return GgufMetadata(path)


def loaded(directory: Path, vocabulary: Vocabulary, **options: str | int | bool) -> PreTrainedTokenizerFast:
    """The tokenizer as an engine directory carries it."""
    file = metadata(directory / "x.gguf", vocabulary, options)
    build_tokenizer(file).save_pretrained(directory)
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(directory)
    return tokenizer


class Llama3Converter(TikTokenConverter):
    """transformers' converter for Llama 3, with a vocabulary that is not in a file."""

    def extract_vocab_merges_from_model(self, tiktoken_url: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
        return BYTES.ids, list(BYTES.merges)


REFERENCES: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": lambda: GPT2Converter(None).converted(BYTES.ids, list(BYTES.merges)),
    "qwen2": lambda: Qwen2Converter(None).converted(BYTES.ids, list(BYTES.merges)),
    "deepseek-r1-qwen": lambda: Qwen2Converter(None).converted(BYTES.ids, list(BYTES.merges)),
    "llama-bpe": lambda: Llama3Converter().converted(),
}


@pytest.mark.parametrize("pre", list(REFERENCES))
def test_ids_equal_transformers(pre: str, tmp_path: Path) -> None:
    found, reference = loaded(tmp_path, BYTES, pre=pre, bos_token_id=BOS), REFERENCES[pre]()
    characters = sorted(dict.fromkeys("".join(TEXTS)))
    generator = random.Random(0)
    texts = [*TEXTS, *("".join(generator.choices(characters, k=50)) for _ in range(200))]
    for text in texts:
        ids = found.encode(text, add_special_tokens=False)
        assert ids == reference.encode(text).ids, text
        assert found.decode(ids) == reference.decode(ids), text


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("smollm", ["Hi", "Ġ", "1", "2", "3", "4", "'s", "Ġx", "..", "Ġ", "ĠÃ²k"]),
        ("gpt-2", ["Hi", "Ġ1234", "'s", "Ġx", "..", "Ġ", "ĠÃ²k"]),
        ("llama-bpe", ["Hi", "Ġ", "123", "4", "'s", "Ġx", "..", "Ġ", "ĠÃ²k"]),
        ("qwen2", ["Hi", "Ġ", "1", "2", "3", "4", "'s", "Ġx", "..", "Ġ", "ĠÃ²k"]),
        ("deepseek-r1-qwen", ["Hi", "Ġ", "1", "2", "3", "4", "'s", "Ġx", "..", "Ġ", "ĠÃ²k"]),
        # Punctuation is split off before contractions are seen.
        ("default", ["Hi", "Ġ", "123", "4", "'", "s", "Ġx", "..", "Ġ", "ĠÃ²k"]),
    ],
)
def test_splits(pre: str, expected: list[str], tmp_path: Path) -> None:
    pieces = loaded(tmp_path, BYTES, pre=pre, bos_token_id=BOS).backend_tokenizer.pre_tokenizer.pre_tokenize_str(
        "Hi 1234's x..  òk"
    )
    assert [piece for piece, _ in pieces] == expected


def test_llama3_takes_a_whole_word_without_merging_it(tmp_path: Path) -> None:
    types = {**BYTES.types, "xyzzy": TokenType.NORMAL}
    vocabulary = replace(BYTES, types=types)
    token = vocabulary.ids["xyzzy"]
    assert token in loaded(tmp_path, vocabulary, pre="llama-bpe", bos_token_id=BOS).encode("xyzzy")
    assert token not in loaded(tmp_path, vocabulary, pre="qwen2").encode("xyzzy")


def test_added_tokens(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path, BYTES, pre="qwen2", eos_token_id=BYTES.ids["<|eos|>"])
    ids = tokenizer.encode("a<think>b<|eos|>")
    assert BYTES.ids["<think>"] in ids
    assert ids[-1] == BYTES.ids["<|eos|>"] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<think>b"


@pytest.mark.parametrize(
    ("options", "adds"),
    [
        ({"pre": "llama-bpe"}, True),
        ({"pre": "llama-bpe", "add_bos_token": False}, False),
        ({"pre": "qwen2"}, False),
        ({"pre": "deepseek-r1-qwen", "add_bos_token": True}, True),
        ({"pre": "gpt-2", "add_bos_token": True}, True),
    ],
)
def test_prompts_begin_with_bos_where_the_file_says_so(
    options: dict[str, str | bool], adds: bool, tmp_path: Path
) -> None:
    codec = TextCodec(loaded(tmp_path, BYTES, bos_token_id=BOS, **options))
    ids = codec.encode("The cat")
    assert (ids[0] == BOS) == adds
    assert codec.decode(ids) == "The cat"
    # A chat template writes its own special tokens.
    assert codec.encode_chat("The cat").count(BOS) == 1


def sentencepiece_vocabulary() -> Vocabulary:
    """All short pieces of a text, in random order of preference."""
    text = "▁the▁cat▁sat▁▁on▁that▁hat"
    pieces = sorted({text[i : i + size] for size in (1, 2, 3, 4) for i in range(len(text) - size + 1)})
    random.Random(0).shuffle(pieces)
    types = {"<unk>": TokenType.UNKNOWN, "<s>": TokenType.CONTROL, "</s>": TokenType.CONTROL}
    types |= {f"<0x{byte:02X}>": TokenType.BYTE for byte in range(256)}
    scores = [0.0] * len(types) + [-float(rank) for rank in range(len(pieces))]
    return Vocabulary("llama", {**types, **dict.fromkeys(pieces, TokenType.NORMAL)}, scores=tuple(scores))


PIECES = sentencepiece_vocabulary()
SPM_TEXTS = ["the cat sat", " on  that hat", "thé cat\n😀", "sat</s>the<unk> hat", "   ", "tttthhheee", "cat<s> on"]


def naive_sentencepiece(text: str, prefix: bool) -> list[str]:
    """Joins the two neighbours whose token has the highest score, over and over, between the special tokens."""
    scores = dict(zip(PIECES.types, PIECES.scores, strict=True))
    tokens: list[str] = []
    for part in filter(None, re.split("(<unk>|<s>|</s>)", text)):
        if part in ("<unk>", "<s>", "</s>"):
            tokens.append(part)
            continue
        symbols = list((" " * prefix + part).replace(" ", "▁"))
        while True:
            joined = [(scores[a + b], -i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in scores]
            if not joined:
                break
            at = -max(joined)[1]
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        for symbol in symbols:
            tokens += [symbol] if symbol in scores else [f"<0x{byte:02X}>" for byte in symbol.encode()]
    return tokens


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("text", SPM_TEXTS)
def test_sentencepiece(text: str, prefix: bool, tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path, PIECES, bos_token_id=1, eos_token_id=2, add_space_prefix=prefix)
    ids = tokenizer.encode(text)
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", *naive_sentencepiece(text, prefix)]
    if "<" not in text:
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    ("vocabulary", "options", "message"),
    [
        (replace(BYTES, model="bert"), {}, "tokenizer.ggml.model: expected one of gpt2, llama, found 'bert'"),
        (BYTES, {"pre": "tekken"}, "tokenizer.ggml.pre: expected one of default, .*, found 'tekken'"),
        (BYTES, {"pre": "qwen2", "add_space_prefix": True}, "add_space_prefix: only False is supported"),
        (BYTES, {"pre": "qwen2", "add_eos_token": True}, "add_eos_token: only False is supported"),
        (BYTES, {"pre": "llama-bpe"}, "bos_token_id: expected the id of a token, found nothing"),
        (BYTES, {"pre": "qwen2", "bos_token_id": 100_000}, "bos_token_id: expected an id below .*, found 100000"),
        (replace(BYTES, merges=(("q", "zzz"),)), {"pre": "qwen2"}, "expected merges of known tokens"),
        (replace(BYTES, merges=()), {"pre": "qwen2"}, "tokenizer.ggml.merges: expected an array, found None"),
        (PIECES, {"remove_extra_whitespaces": True}, "remove_extra_whitespaces: only False is supported"),
        (replace(PIECES, scores=(1.0,)), {}, "tokenizer.ggml.scores: expected .*, found 1"),
    ],
)
def test_refused(vocabulary: Vocabulary, options: dict[str, str | int | bool], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        build_tokenizer(metadata(tmp_path / "x.gguf", vocabulary, options))
