"""Real texts that every installation of sparsespec has: nothing is downloaded, nothing is stored in the repository.

Five genres, because drafts are easier in some than in others: the language reference, program source, licences, the
docstrings of packages, and package descriptions.
"""

from __future__ import annotations

import importlib
import inspect
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution, distributions
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType

_PACKAGES_WITH_DOCSTRINGS = (
    "numpy",
    "torch",
    "torch.nn.functional",
    "torch.nn",
    "torch.optim",
    "torch.distributions",
    "torch.utils.data",
    "numpy.linalg",
    "numpy.random",
    "numpy.ma",
    "torch.linalg",
    "torch.special",
    "torch.fft",
    "transformers.generation",
)
_LICENCE_DIRECTORY = Path("/usr/share/common-licenses")


@dataclass(frozen=True)
class Text:
    """One document; a cluster of the study."""

    source: str
    name: str
    content: str


def collect_texts(min_chars: int, max_texts: int) -> list[Text]:
    """Up to max_texts of every source, each min_chars long; shorter documents of a source are joined."""
    found: list[Text] = []
    for source, documents in _SOURCES.items():
        found += islice(_joined(source, documents(), min_chars), max_texts)
    return found


def _joined(source: str, documents: Iterator[tuple[str, str]], min_chars: int) -> Iterator[Text]:
    names, parts = [], []
    for name, content in documents:
        names.append(name)
        parts.append(content)
        if sum(map(len, parts)) >= min_chars:
            yield Text(source, names[0], "\n\n".join(parts)[:min_chars])
            names, parts = [], []


def _reference() -> Iterator[tuple[str, str]]:
    yield from sorted(topics.items())


def _program_source() -> Iterator[tuple[str, str]]:
    """Large modules of the standard library, largest first."""
    files = sorted(
        Path(sysconfig.get_paths()["stdlib"]).glob("*.py"), key=lambda path: (-path.stat().st_size, path.name)
    )
    for path in files:
        # Left out so that the texts, and with them the halves, stay those of the stored results.
        if path.name != "_pydatetime.py":
            yield path.name, path.read_text(encoding="utf-8", errors="replace")


def _licences() -> Iterator[tuple[str, str]]:
    """Each licence once: one that begins like another is its copy with another holder or year."""
    seen: list[str] = []
    for name, path in [*_common_licences(), *_licence_files()]:
        content = path.read_text(encoding="utf-8", errors="replace")
        opening = "".join(character for character in content[:3000].lower() if character.isalpha())[300:900]
        if opening not in seen:
            seen.append(opening)
            yield name, content


def _common_licences() -> list[tuple[str, Path]]:
    files = [path for path in sorted(_LICENCE_DIRECTORY.glob("*")) if path.is_file() and not path.is_symlink()]
    return [(path.name, path) for path in files]


def _licence_files() -> list[tuple[str, Path]]:
    files = []
    for package in _sorted_distributions():
        for file in package.files or ():
            path = Path(str(file.locate()))
            if "dist-info" in str(file) and path.name.upper().startswith(("LICEN", "COPYING", "NOTICE", "AUTHORS")):
                files.append((f"{package.metadata['Name']}/{file}", path))
    return sorted(files)


def _docstrings() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES_WITH_DOCSTRINGS:
        module = importlib.import_module(name)
        for member, text in _members(module):
            yield f"{name}.{member}", text


def _members(module: ModuleType) -> Iterator[tuple[str, str]]:
    for name in sorted(vars(module)):
        text = inspect.getdoc(vars(module)[name])
        if text and len(text) > 400 and callable(vars(module)[name]):
            yield name, f"{name}\n{'-' * len(name)}\n{text}"


def _descriptions() -> Iterator[tuple[str, str]]:
    for package in _sorted_distributions():
        text = package.metadata.json.get("description", "")
        if len(text) > 1000:
            yield package.metadata["Name"], str(text)


def _sorted_distributions() -> list[Distribution]:
    named = {package.metadata["Name"].lower(): package for package in distributions()}
    return [distribution(name) for name in sorted(named)]


_SOURCES: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "reference": _reference,
    "source": _program_source,
    "licences": _licences,
    "docstrings": _docstrings,
    "descriptions": _descriptions,
}
