# SPDX-License-Identifier: Apache-2.0
"""Reproduces every cause on several kernels, one emulated host after the other: `python -m tests.rig.causes [NAME…]`.

NAME is `machine`, for the machine's own kernel, or one of tests/rig/kernels.py; without any, all. What was seen goes to
build/causes/NAME.jsonl, of which tests/rig/matrix.py makes a page.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.rig import guest_tests
from tests.rig.guest import REPOSITORY, Guest, GuestError
from tests.rig.kernels import KERNELS, KernelError, get

MACHINE = "machine"
NAMES = (MACHINE, *KERNELS)
RECORDS = REPOSITORY / "build" / "causes"
FILE = "causes.jsonl"
_TIME_LIMIT = 900.0


def reproduce(name: str, words: Sequence[str]) -> int:
    """Run all tests with the mark `cause` on a kernel, and return pytest's exit status.

    `words` are more words for pytest. Raises GuestError and KernelError.
    """
    kernel = None if name == MACHINE else get(name)
    pytest = [
        "tests/kernel",
        "-m",
        "cause",
        "--ignore",
        "tests/kernel/gigantic",
        "-q",
        "--durations=5",
        *words,
    ]

    def make() -> Guest:
        # Before 6.14 the kernel gives out secret memory only when told so at boot.
        return Guest(time_limit=_TIME_LIMIT, kernel=kernel, kernel_args=["secretmem.enable=1"])

    def keep(shared: Path) -> None:
        RECORDS.mkdir(parents=True, exist_ok=True)
        if (shared / FILE).exists():
            shutil.copyfile(shared / FILE, RECORDS / f"{name}.jsonl")

    print(f"kernel {name}", flush=True)
    return guest_tests.run(pytest, make=make, keep=keep)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the causes on each kernel, all of them even when one fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.rig.causes", description="Reproduce every cause.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)} (all)")
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="only these tests, as pytest's -k")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"unknown kernel {', '.join(unknown)}; there are {', '.join(NAMES)}")
    statuses = {}
    for name in options.names or NAMES:
        try:
            statuses[name] = reproduce(name, ["-k", options.k] if options.k else [])
        except (GuestError, KernelError) as error:
            print(f"error: kernel {name}: {error}", file=sys.stderr)
            statuses[name] = 1
    failed = [name for name, status in statuses.items() if status]
    if failed:
        print(f"error: not all causes are as they should be on {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
