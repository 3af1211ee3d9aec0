"""Fuzz one target, or one after the other: `./run.sh fuzz [TARGET] [--minutes N]`.

Each runs in a process of its own, guided by coverage (atheris, libFuzzer), from the inputs in
`corpus/TARGET`.  What it finds on the way is kept in .cache/fuzz; an input that breaks a target
is kept there too, and the run ends with status 1.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from tests.netns.namespace import ROOT

CORPUS = Path(__file__).with_name("corpus")
FOUND = ROOT / ".cache/fuzz"
TIMEOUT_S = 10  # for one input: more is a denial of service
MEMORY_MIB = 2048
RUN_ONE = """
import sys, atheris
with atheris.instrument_imports(include=["vpnd", "helper"]):
    from tests.fuzz.targets import TARGETS
name = sys.argv.pop(1)
atheris.Setup(sys.argv, lambda data: TARGETS[name](data))
atheris.Fuzz()
"""


def main() -> int:
    """Return 0 when nothing was found, 1 when something was, 2 for an unknown target."""
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="./run.sh fuzz")
    parser.add_argument("target", nargs="?", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--minutes", type=float, default=1.0, help="for each target; default: 1")
    options = parser.parse_args()
    if options.target not in (None, *TARGETS):
        parser.error(f"there is no target {options.target}; there are {', '.join(TARGETS)}")
    chosen = [options.target] if options.target else list(TARGETS)
    failed = [name for name in chosen if not fuzz(name, options.minutes)]
    for name in failed:
        print(f"{name}: broken by the inputs in {FOUND / 'broken' / name}")
    return 1 if failed else 0


def fuzz(name: str, minutes: float) -> bool:
    """Return whether the target stood it."""
    print(f"fuzzing {name} for {minutes:g} min", flush=True)
    kept, broken = FOUND / name, FOUND / "broken" / name
    kept.mkdir(parents=True, exist_ok=True)
    broken.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [
            sys.executable, "-c", RUN_ONE, name, str(kept), str(CORPUS / name),
            f"-max_total_time={max(1, round(60 * minutes))}", f"-timeout={TIMEOUT_S}",
            f"-rss_limit_mb={MEMORY_MIB}", "-max_len=70000", "-verbosity=0",
            "-print_final_stats=1", f"-artifact_prefix={broken}/",
        ],
        cwd=ROOT,
        check=False,
    )  # fmt: skip
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
