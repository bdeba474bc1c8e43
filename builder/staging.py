"""Writing a directory as one atomic step: fill a hidden sibling, flush it, rename it into place.

A stage is `.NAME.building-XXXXXXXX/` beside the target, with
    lock       held (flock) as long as its build lives, so that a dead build's stage can be told from a live one's
    content/   the directory being written
    replaced/  what stood at the target before, for the moment between the two renames
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stage:
    """A live build's folder, beside its target."""

    root: Path

    @property
    def content(self) -> Path:
        """What becomes the target."""
        return self.root / "content"

    @property
    def replaced(self) -> Path:
        """What the target was, between the two renames."""
        return self.root / "replaced"

    @property
    def lock(self) -> Path:
        """The file that the build keeps locked as long as it lives."""
        return self.root / "lock"


@contextmanager
def staged(target: Path) -> Iterator[Stage]:
    """A fresh stage beside `target` with an empty content folder; it is removed at the end, whatever happened.

    Stages that dead builds of the same target left behind are removed first; live ones are not disturbed.
    """
    _remove_dead_stages(target)
    stage, lock = _create_locked(target)
    try:
        stage.content.mkdir()
        yield stage
    finally:
        shutil.rmtree(stage.root, ignore_errors=True)
        os.close(lock)


def publish(stage: Stage, target: Path) -> None:
    """Flush the stage's content to disk and rename it to `target`, moving away what is there. Raises OSError."""
    for directory, _, files in os.walk(stage.content):
        for path in (*(os.path.join(directory, file) for file in files), directory):
            _flush(path)
    if target.exists():
        os.rename(target, stage.replaced)
    try:
        os.rename(stage.content, target)
    except OSError:
        _restore(stage, target)
        raise
    _flush(target.parent)


def _create_locked(target: Path) -> tuple[Stage, int]:
    while True:
        stage = Stage(Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent)))
        lock = _try_lock(stage)
        if lock is not None:
            return stage, lock
        # Another build saw the stage before its lock was held, took it for a dead one and removes it.


def _remove_dead_stages(target: Path) -> None:
    pattern = re.compile(re.escape(_prefix(target)) + "[a-z0-9_]{8}")
    for path in list(target.parent.iterdir()):
        if not pattern.fullmatch(path.name):
            continue
        lock = _try_lock(Stage(path))
        if lock is not None:
            _restore(Stage(path), target)
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _prefix(target: Path) -> str:
    return f".{target.name}.building-"


def _try_lock(stage: Stage) -> int | None:
    """The descriptor that holds the stage's lock, or None when another process has it or has removed the stage."""
    try:
        lock = os.open(stage.lock, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    if os.fstat(lock).st_nlink == 0:
        os.close(lock)
        return None
    return lock


def _restore(stage: Stage, target: Path) -> None:
    """A build that died between its two renames has left the old directory in the stage: put it back."""
    if stage.replaced.exists() and not target.exists():
        os.rename(stage.replaced, target)


def _flush(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
