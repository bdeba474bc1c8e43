"""Damaged GGUF files are read, or refused with a clear error."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import gguf
import pytest

from hostile_campaign import campaign
from hostile_checkpoints import read_all, small_model
from hostile_mutations import ODD_FLOATS, ODD_INTEGERS, ODD_TEXTS, damaged_bytes
from tiny_gguf import write_tiny_gguf
from tiny_models import tiny_hf_model

KINDS = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16)
NUMBERS = "BbHhIifxxxQqd"  # struct's letter of every scalar type, by its number in the format; bool, text, array: x
BOOL, TEXT, ARRAY = 7, 8, 9


@dataclass(frozen=True)
class Parsed:
    """A file as its parts: where each begins, the metadata one by one, and the tensors' descriptions and data."""

    content: bytes
    parts: tuple[tuple[int, int], ...]  # offset and size of every number and text in the header
    metadata: tuple[tuple[bytes, bytes], ...]  # key; type and value
    tensors: tuple[bytes, ...]
    data: bytes


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Parsed]:
    folder = tmp_path_factory.mktemp("intact")
    models = [small_model(family, vocab_size=100) for family in ("llama", "qwen2", "qwen3")]
    paths = [write_tiny_gguf(folder / f"{model.family}.gguf", tiny_hf_model(model), KINDS) for model in models]
    for path, model in zip(paths, models, strict=True):
        assert read_all(path) == model
    return [_parse(path) for path in paths]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "hostile.gguf"


def test_bytes(files: list[Parsed], target: Path) -> None:
    def attempt(random: Random) -> None:
        target.write_bytes(damaged_bytes(random.choice(files).content, random))
        read_all(target)

    campaign("gguf bytes", attempt)


def test_parts_of_the_header(files: list[Parsed], target: Path) -> None:
    """Every count, length, dimension, type and offset lies in turn; files end at and around every boundary."""

    def attempt(random: Random) -> None:
        file = random.choice(files)
        offset, size = random.choice(file.parts)
        content, kind = bytearray(file.content), random.randrange(4)
        if kind == 0:
            del content[offset + random.choice((0, 0, size, -1, 1)) :]
        elif kind == 1:
            del content[offset : offset + size]
        elif kind == 2:
            content[offset:offset] = content[offset : offset + size]
        else:
            content[offset : offset + size] = (random.choice(ODD_INTEGERS) % 256**size).to_bytes(size, "little")
        target.write_bytes(content)
        read_all(target)

    campaign("gguf parts", attempt)


def test_metadata(files: list[Parsed], target: Path) -> None:
    """A well-formed file whose metadata say odd things, or whose tensors are other ones."""

    def attempt(random: Random) -> None:
        file = random.choice(files)
        metadata, tensors = list(file.metadata), list(file.tensors)
        for _ in range(random.choice((1, 1, 2, 3))):
            _change_metadata(metadata, random)
        if random.random() < 0.2:
            _change_tensors(tensors, random)
        target.write_bytes(_file(metadata, tensors, file.data))
        read_all(target)

    campaign("gguf metadata", attempt)


def test_sentencepiece(files: list[Parsed], target: Path) -> None:
    """The other kind of tokenizer, of tokens, scores and types at random."""
    kept = [pair for pair in files[0].metadata if not pair[0].startswith(b"tokenizer.")]

    def attempt(random: Random) -> None:
        count = random.choice((0, 1, 7, 100))
        tokens = [random.choice((*ODD_TEXTS[:6], "▁", "ab", "<s>", "<0x0A>", str(i))) for i in range(count)]
        metadata = [
            *kept,
            (b"tokenizer.ggml.model", _typed_text("llama")),
            (b"tokenizer.ggml.tokens", _array(TEXT, count, b"".join(_text(token) for token in tokens))),
            (
                b"tokenizer.ggml.token_type",
                _array(5, count, struct.pack(f"<{count}i", *random.choices(range(9), k=count))),
            ),
            (b"tokenizer.ggml.scores", _array(6, count, struct.pack(f"<{count}f", *(_small(random) for _ in tokens)))),
            *(
                (f"tokenizer.ggml.{role}_token_id".encode(), _number(5, random.randint(-2, 101)))
                for role in ("bos", "eos")
            ),
        ]
        _change_metadata(metadata, random)
        target.write_bytes(_file(metadata, list(files[0].tensors), files[0].data))
        read_all(target)

    campaign("gguf sentencepiece", attempt)


def test_a_token_of_a_million_characters(files: list[Parsed], target: Path) -> None:
    """Every way to cut it in two would be tried as a merge."""
    metadata = [pair for pair in files[0].metadata if not pair[0].startswith(b"tokenizer.")]
    metadata += [
        (b"tokenizer.ggml.model", _typed_text("llama")),
        (b"tokenizer.ggml.tokens", _array(TEXT, 1, _text("a" * 10**6))),
        (b"tokenizer.ggml.token_type", _array(5, 1, struct.pack("<i", 1))),
        (b"tokenizer.ggml.scores", _array(6, 1, struct.pack("<f", 0))),
    ]
    target.write_bytes(_file(metadata, list(files[0].tensors), files[0].data))
    assert "expected tokens of at most 1000 characters, found one of 1000000" in str(read_all(target))


def _change_metadata(metadata: list[tuple[bytes, bytes]], random: Random) -> None:
    at, kind = random.randrange(len(metadata)), random.randrange(8)
    if kind == 0:
        del metadata[at]
    elif kind == 1:
        metadata.append(metadata[at])
    elif kind == 2:
        metadata[at] = (metadata[at][0], random.choice(metadata)[1])
    elif kind == 3:
        metadata.append((random.choice(_READ_KEYS), _odd_typed(random)))
    elif kind == 4:
        metadata[at] = (damaged_bytes(metadata[at][0], random), metadata[at][1])
    elif kind == 5:
        metadata[at] = (metadata[at][0], damaged_bytes(metadata[at][1], random))
    else:
        metadata[at] = (metadata[at][0], _odd_typed(random))


def _change_tensors(tensors: list[bytes], random: Random) -> None:
    at, kind = random.randrange(len(tensors)), random.randrange(4)
    if kind == 0:
        del tensors[at]
    elif kind == 1:
        tensors.append(tensors[at])
    elif kind == 2:
        tensors[at] = damaged_bytes(tensors[at], random)
    else:
        name = random.choice(("rope_freqs.weight", "output.weight", "blk.7.attn_q.weight", *ODD_TEXTS))
        dims = random.choices((*(abs(odd) for odd in ODD_INTEGERS), 2, 4, 8), k=random.randint(0, 6))
        shape = struct.pack(f"<I{len(dims)}Q", len(dims), *(dim % 2**64 for dim in dims))
        tensors.append(_text(name) + shape + struct.pack("<IQ", random.randrange(45), random.choice((0, 32, 2**63))))


_SCALING = ("type", "factor", "attn_factor", "original_context_length", "yarn_log_multiplier", "yarn_beta_fast", "odd")
_READ_KEYS = tuple(
    key.encode()
    for key in (
        "general.alignment",
        "split.count",
        "llama.expert_count",
        "llama.attention.causal",
        "llama.rope.scale_linear",
        "qwen2.vocab_size",
        "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.add_eos_token",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.padding_token_id",
        "tokenizer.ggml.add_space_prefix",
        "tokenizer.ggml.remove_extra_whitespaces",
        *(f"{family}.rope.scaling.{name}" for family in ("llama", "qwen2", "qwen3") for name in _SCALING),
    )
)


def _odd_typed(random: Random) -> bytes:
    """A type and a value of it, or a type that is none."""
    choices: tuple[Callable[[], bytes], ...] = (
        lambda: _number(random.choice((0, 1, 2, 3, 4, 5, 10, 11)), random.choice(ODD_INTEGERS)),
        lambda: _number(6, _small(random)),
        lambda: _number(12, random.choice(ODD_FLOATS)),
        lambda: struct.pack("<IB", BOOL, random.choice((0, 1, 2, 255))),
        lambda: _typed_text(
            random.choice(("yarn", "linear", "none", "gpt2", "llama", "qwen2", "llama-bpe", *ODD_TEXTS))
        ),
        lambda: _array(TEXT, 2, _text("a") + _text("b c")),
        lambda: _array(random.choice((0, 5, 6, 12)), 3, random.randbytes(24)),
        lambda: _array(ARRAY, 1, _array(TEXT, 1, _text("deep"))[4:]),
        lambda: (
            struct.pack("<I", ARRAY)
            + struct.pack("<IQ", ARRAY, 1) * random.choice((3, 2000))
            + struct.pack("<IQ", 0, 0)
        ),
        lambda: _array(random.randrange(13), random.choice((2**20, 2**40, 2**64 - 1)), b""),
        lambda: struct.pack("<I", random.choice((13, 99, 2**32 - 1))),
    )
    return random.choice(choices)()


def _small(random: Random) -> float:
    """Of the odd floats, one that 32 bits hold."""
    return random.choice([value for value in ODD_FLOATS if not 1e38 < abs(value) < float("inf")])


def _text(text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(content)) + content


def _typed_text(text: str) -> bytes:
    return struct.pack("<I", TEXT) + _text(text)


def _number(kind: int, value: float) -> bytes:
    letter = NUMBERS[kind]
    if letter not in "fd":
        size = struct.calcsize(letter)
        return struct.pack("<I", kind) + (int(value) % 256**size).to_bytes(size, "little")
    return struct.pack(f"<I{letter}", kind, value)


def _array(kind: int, count: int, content: bytes) -> bytes:
    return struct.pack("<IIQ", ARRAY, kind, count) + content


def _file(metadata: list[tuple[bytes, bytes]], tensors: list[bytes], data: bytes) -> bytes:
    pairs = b"".join(struct.pack("<Q", len(key)) + key + value for key, value in metadata)
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)) + pairs + b"".join(tensors)
    return header + bytes(-len(header) % 32) + data


def _parse(path: Path) -> Parsed:
    content, reader = path.read_bytes(), gguf.GGUFReader(path)
    parts, metadata, tensors = [(0, 4)], [], []
    for field in (*reader.fields.values(), *(tensor.field for tensor in reader.tensors)):
        start, end = field.offset, field.offset
        for part in field.parts:
            parts.append((end, part.nbytes))
            end += part.nbytes
        if field in reader.fields.values() and not field.name.startswith("GGUF."):
            key_end = start + 8 + len(field.name)
            metadata.append((content[start + 8 : key_end], content[key_end:end]))
        elif not field.name.startswith("GGUF."):
            tensors.append(content[start:end])
    parsed = Parsed(
        content,
        tuple(part for part in parts if part[1]),
        tuple(metadata),
        tuple(tensors),
        content[reader.data_offset :],
    )
    assert _file(list(parsed.metadata), list(parsed.tensors), parsed.data) == content
    return parsed
