"""Print the text that the demo reads: chapters of the Python reference that every CPython carries.

Usage: demo_text.py [FILE]    (without FILE the text goes to standard output)
"""

from __future__ import annotations

import sys
from pathlib import Path
from pydoc_data.topics import topics

# About 3,700 tokens for SmolLM2; the last chapter is the one that the demo asks about.
CHAPTERS = ("objects", "exceptions", "raise", "context-managers", "with")


def demo_text() -> str:
    """The chapters in reading order, a blank line between them."""
    return "\n\n".join(topics[name].strip() for name in CHAPTERS) + "\n"


def main() -> None:
    if len(sys.argv) > 2:
        sys.exit(f"usage: demo_text.py [FILE]; expected at most one argument, found {len(sys.argv) - 1}")
    if len(sys.argv) == 2:
        Path(sys.argv[1]).write_text(demo_text(), encoding="utf-8")
    else:
        sys.stdout.buffer.write(demo_text().encode("utf-8"))


if __name__ == "__main__":
    main()
