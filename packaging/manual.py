"""Make the manual pages and the completions, or with --check say which are stale.

    .venv/bin/python packaging/manual.py [--check]

They are committed, so that building the package needs none of the libraries that this needs.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from generate import completion, pages  # noqa: E402 - it imports the programs from ROOT


def made() -> dict[Path, str]:
    """Return the text of everything that is made, by its path below the repository."""
    return pages.pages() | completion.files()


def stale(found: dict[Path, str]) -> list[Path]:
    """Return those whose file is another one, or is missing."""
    return [path for path, text in found.items() if _read(ROOT / path) != text]


def _read(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


def main() -> int:
    """Write what is stale; with --check only name it, and return 1 where there is something."""
    parser = argparse.ArgumentParser(prog="manual.py", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    found = made()
    paths = stale(found)
    for path in paths:
        print(f"{path}: {'stale: run packaging/manual.py' if check else 'written'}")  # noqa: T201 - for who runs it
        if not check:
            (ROOT / path).parent.mkdir(exist_ok=True)
            (ROOT / path).write_text(found[path])
    return 1 if check and paths else 0


if __name__ == "__main__":
    sys.exit(main())
