# SPDX-License-Identifier: Apache-2.0
"""The distribution packages the tests and the demo need, and their installation.

`python3 -m tests.rig.packages` installs what is missing when run as root; otherwise it prints the one line that does
and fails. Stdlib only: it runs before there is a virtual environment.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.rig.gotoolchain import cache_folder

KERNEL = "linux-image-amd64"
PACKAGES: Mapping[str, str] = {
    "qemu-system-x86": "the emulated host, and the VMs on it",
    "busybox-static": "the emulated host's initramfs",
    "cpio": "the emulated host's initramfs",
    "kmod": "the emulated host's modules",
    "udev": "the emulated host's devices",
    "iproute2": "the emulated host's network",
    "numactl": "numastat and migratepages, which check and are compared with what we do",
    KERNEL: "the emulated host's kernel; the one this machine runs is not touched",
    "gcc": "what the engine is measured against, in C",
    "libc6-dev": "what the engine is measured against, in C",
    "python3-venv": "the virtual environment",
    "ca-certificates": "downloads of Go modules",
}
# Debian's flavour for cloud machines has no 9p and cannot be the emulated host's; an unsigned or numbered one can.
KERNEL_IMAGE = re.compile(r"linux-image-\d(?!.*cloud).*-amd64(-unsigned)?")
LOG_TAIL_LINES = 20


@dataclass(frozen=True)
class Nothing:
    """All packages are there."""


@dataclass(frozen=True)
class Install:
    """Install these now."""

    packages: tuple[str, ...]


@dataclass(frozen=True)
class Tell:
    """Cannot install: tell the person this."""

    message: str


def missing(installed: Collection[str], *, has_venv: bool) -> tuple[str, ...]:
    """Return the names in `PACKAGES` that are needed, given what is installed.

    Any kernel image that fits stands for `linux-image-amd64`, and a Python of the person's own that can make virtual
    environments (`has_venv`) for `python3-venv`.
    """
    satisfied = set(installed)
    if any(KERNEL_IMAGE.fullmatch(name) for name in installed):
        satisfied.add(KERNEL)
    if has_venv:
        satisfied.add("python3-venv")
    return tuple(name for name in PACKAGES if name not in satisfied)


def decide(needed: tuple[str, ...], *, is_root: bool, has_apt: bool) -> Nothing | Install | Tell:
    """Decide what to do about the packages that are needed."""
    if not needed:
        return Nothing()
    if not has_apt:
        uses = "\n".join(f"  {name}: {PACKAGES[name]}" for name in needed)
        return Tell(f"This is set up for Debian 12 and found no apt-get. Install what these are elsewhere:\n{uses}")
    if not is_root:
        return Tell(f"Distribution packages are missing. As root:\n  {install_line(needed)}")
    return Install(needed)


def install_line(packages: tuple[str, ...]) -> str:
    """Return the command that installs packages."""
    return f"apt-get install -y --no-install-recommends {' '.join(packages)}"


def installed_packages(listing: str) -> frozenset[str]:
    """Read the answer of `dpkg-query -W -f '${db:Status-Status} ${Package}\\n'`."""
    lines = (line.split() for line in listing.splitlines())
    return frozenset(words[1] for words in lines if words[:1] == ["installed"])


def gather() -> tuple[str, ...]:
    """Ask this machine what is missing."""
    if shutil.which("dpkg-query") is None:
        listing = ""
    else:
        form = "${db:Status-Status} ${Package}\n"
        listing = subprocess.run(["dpkg-query", "-W", "-f", form], capture_output=True, text=True, check=True).stdout
    can_make_venv = subprocess.run([sys.executable, "-c", "import venv, ensurepip"], capture_output=True, check=False)
    return missing(installed_packages(listing), has_venv=can_make_venv.returncode == 0)


def install(packages: tuple[str, ...]) -> bool:
    """Install packages with apt-get, its output in a log that is shown if it fails."""
    log = cache_folder() / "apt.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"Installing distribution packages: {' '.join(packages)}", flush=True)
    started = time.monotonic()
    # Another apt-get may be at work on a machine that has just started.
    wait = ["-o", "DPkg::Lock::Timeout=300"]
    with log.open("w") as output:
        for words in (["update"], install_line(packages).split()[1:]):
            command = ["apt-get", *wait, *words]
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False)
            if done.returncode != 0:
                output.flush()
                tail = "\n".join(f"  | {line}" for line in log.read_text().splitlines()[-LOG_TAIL_LINES:])
                print(f"error: {' '.join(command)} failed; the end of {log}:\n{tail}", file=sys.stderr)
                return False
    print(f"  distribution packages: installed in {time.monotonic() - started:.0f} s", flush=True)
    return True


def main() -> int:
    """Make the packages be there and return the exit code."""
    has_apt = shutil.which("apt-get") is not None and Path("/etc/debian_version").exists()
    decision = decide(gather(), is_root=os.geteuid() == 0, has_apt=has_apt)
    if isinstance(decision, Tell):
        print(decision.message, file=sys.stderr)
        return 1
    if isinstance(decision, Install):
        return 0 if install(decision.packages) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
