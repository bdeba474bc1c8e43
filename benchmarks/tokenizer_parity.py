"""Token ids of GGUF files' tokenizers, against llama.cpp's (pip install llama-cpp-python==0.3.36).

python benchmarks/tokenizer_parity.py llama.cpp/models/ggml-vocab-{llama-bpe,llama-spm,qwen2,gpt-2}.gguf
"""

from __future__ import annotations

import argparse
import sysconfig
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from random import Random
from unicodedata import is_normalized

from sparsespec.builder.checkpoint.gguf_reader import GgufMetadata
from sparsespec.builder.checkpoint.gguf_tokenizer import build_tokenizer
from sparsespec.builder.errors import InputError
from sparsespec.builder.terminal import run_tool

_LETTERS = (
    "abc XYZ  \n\t\r0123456789.,;:'\"!?()[]{}<>|^~+=-_$'sthe'LLre'vedon'T"
    "€é😀中文字ÄßŁ한국어日本語العربيةदेवनागरी\u200d\u00a0\u3000"
)
_PLANES = ((1, 0x2FF), (0x300, 0xD7FF), (0xE000, 0x1FFFF), (32, 126))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0 or an exit code of `run_tool`."""
    parser = argparse.ArgumentParser(
        prog="tokenizer_parity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="GGUF files; a vocabulary is enough", metavar="FILE.gguf")
    files = parser.parse_args(argv).files
    return run_tool(lambda: _run(files))


def _run(files: Sequence[Path]) -> int:
    if find_spec("llama_cpp") is None:
        raise InputError("expected llama.cpp, found none; pip install llama-cpp-python==0.3.36")
    texts = [*topics.values(), *_sources(60), *random_texts(3000, 1500)]
    print("| tokenizer | texts | tokens | texts with other ids | of them in NFC |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for path in files:
        print(_row(path, texts), flush=True)
    return 0


def _row(path: Path, texts: Sequence[str]) -> str:
    from llama_cpp import Llama

    reference, tokenizer = Llama(str(path), vocab_only=True, verbose=False), build_tokenizer(GgufMetadata(path))
    expected = [reference.tokenize(text.encode(), add_bos=False, special=True) for text in texts]
    found = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    differ = [text for text, ours, theirs in zip(texts, found, expected, strict=True) if ours != theirs]
    normal = sum(is_normalized("NFC", text) for text in differ)
    return f"| {path.stem} | {len(texts)} | {sum(map(len, expected))} | {len(differ)} | {normal} |"


def _sources(count: int) -> list[str]:
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:count]
    return [path.read_text(encoding="utf-8", errors="replace") for path in files]


def random_texts(num_plain: int, num_odd: int) -> list[str]:
    """Of a few letters that pre-tokenizers look for, and of all planes of Unicode."""
    random = Random(0)
    plain = ["".join(random.choices(_LETTERS, k=random.randint(1, 60))) for _ in range(num_plain)]
    odd = [[chr(random.randint(*random.choice(_PLANES))) for _ in range(random.randint(1, 30))] for _ in range(num_odd)]
    return plain + ["".join(characters) for characters in odd]


if __name__ == "__main__":
    raise SystemExit(main())
