# SPDX-License-Identifier: Apache-2.0
"""The rig's Go programs and KubeVirt's CRDs: found, or built once into a cache outside the checkout.

`python -m tests.rig.gotools [--all | NAME…]` makes sure they are there and prints their paths. Stdlib only: it runs
before there is a virtual environment. Programs are taken from `KUBEBUILDER_ASSETS` if the version there is right, else
from the cache, else built with Go.
"""

import argparse
import enum
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.rig.gotoolchain import Go, ToolError, cache_folder, find_go, install_go, version_tuple, wanted_go

MODULE = Path(__file__).parent.parent / "tools"
KUBERNETES = "k8s.io/kubernetes"
ETCD = "go.etcd.io/etcd/server/v3"
HELM = "helm.sh/helm/v4"
KUBEVIRT_CRDS = "kubevirt-crds"
# -mod=readonly: a build never edits go.mod. -buildvcs=false: the same bytes from any state of the checkout.
GO_ENVIRONMENT = {
    "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off",
}  # fmt: skip
PROGRESS_SECONDS = 20


@dataclass(frozen=True)
class Tool:
    """One program: the file it becomes, the package it is built from and the module that sets its version."""

    name: str
    package: str
    module: str
    folder: Path = MODULE
    """Where the go.mod is that says which version of everything goes in."""


TOOLS = {
    tool.name: tool
    for tool in (
        Tool("etcd", ETCD, ETCD),
        Tool("kube-apiserver", f"{KUBERNETES}/cmd/kube-apiserver", KUBERNETES),
        Tool("kubectl", f"{KUBERNETES}/cmd/kubectl", KUBERNETES),
        Tool("kube-controller-manager", f"{KUBERNETES}/cmd/kube-controller-manager", KUBERNETES),
        Tool("kube-scheduler", f"{KUBERNETES}/cmd/kube-scheduler", KUBERNETES),
        Tool("helm", f"{HELM}/cmd/helm", HELM, folder=MODULE / "helm"),
    )
}


class Source(enum.Enum):
    """Where a program comes from."""

    ASSETS = "KUBEBUILDER_ASSETS"
    CACHE = "cache"
    BUILD = "build"


def requires(go_mod: str, module: str) -> bool:
    """Tell whether a go.mod requires a module, directly or not."""
    return _requirement(go_mod, module) is not None


def required_version(go_mod: str, module: str) -> str:
    """Return the version a go.mod requires of a module, such as "v1.37.2"."""
    found = _requirement(go_mod, module)
    if found is None:
        raise ToolError(f"the go.mod does not require {module}")
    return found


def _requirement(go_mod: str, module: str) -> str | None:
    # Lines of a replace block name a module without a version: "k8s.io/api => k8s.io/api v0.37.2".
    found = re.search(rf"^(?:require\s+|\s+){re.escape(module)} (v\S+)", go_mod, re.MULTILINE)
    return found.group(1) if found else None


def same_minor(answer: str, *, wanted: str) -> bool:
    """Tell whether a program's answer to `--version` has the major and minor version of `wanted`."""
    return version_tuple(answer)[:2] == version_tuple(wanted)[:2] != ()


def choose(*, assets_answer: str | None, wanted: str, cached: bool) -> Source:
    """Decide where a program comes from.

    `assets_answer` is what the one in KUBEBUILDER_ASSETS says to `--version`, None if there is none that runs.
    """
    if assets_answer is not None and same_minor(assets_answer, wanted=wanted):
        return Source.ASSETS
    return Source.CACHE if cached else Source.BUILD


def linker_flags(go_mod: str) -> str:
    """Return the linker flags for the programs of a go.mod; without the version in them they say v0.0.0-master."""
    flags = "-s -w"
    if requires(go_mod, KUBERNETES):
        version = required_version(go_mod, KUBERNETES)
        major, minor = version_tuple(version)[:2]
        variables = {"gitVersion": version, "gitMajor": str(major), "gitMinor": str(minor)}
        flags += "".join(f" -X k8s.io/component-base/version.{name}={value}" for name, value in variables.items())
    if requires(go_mod, HELM):
        flags += f" -X {HELM}/internal/version.version={required_version(go_mod, HELM)}"
    return flags


def fingerprint(*parts: bytes) -> str:
    """Return a short name for inputs: equal names mean equal inputs, in the same order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return digest.hexdigest()[:16]


def tool_path(name: str) -> Path:
    """Return the path of a program, building it first if it is nowhere. Raises `ToolError`."""
    tool = TOOLS.get(name)
    if tool is None:
        raise ToolError(f"no such tool: {name}; there are {', '.join([*TOOLS, KUBEVIRT_CRDS])}")
    go_mod = (tool.folder / "go.mod").read_text()
    wanted = required_version(go_mod, tool.module)
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and choose(assets_answer=_version(Path(assets) / name), wanted=wanted, cached=False) is Source.ASSETS:
        return Path(assets) / name
    go = find_go(wanted=wanted_go(go_mod))
    flags = linker_flags(go_mod)
    inputs = [go_mod, (tool.folder / "go.sum").read_text(), flags, repr(sorted(GO_ENVIRONMENT.items())), go.version]
    folder = cache_folder() / "gotools" / fingerprint(*(text.encode() for text in inputs))
    binary = folder / "bin" / name
    if choose(assets_answer=None, wanted=wanted, cached=binary.exists()) is Source.BUILD:
        with _locked(folder / "lock"):
            if not binary.exists():
                install_go(go)
                _build(go, cwd=tool.folder, package=tool.package, output=binary, flags=flags, title=f"{name} {wanted}")
    return binary


def kubevirt_crds() -> Path:
    """Return a YAML file with KubeVirt's CRDs for VMIs and their migrations, made by KubeVirt's own package."""
    source = MODULE / KUBEVIRT_CRDS
    files = sorted(path for path in source.rglob("*") if path.is_file())
    inputs = [part for path in files for part in (str(path.relative_to(source)).encode(), path.read_bytes())]
    folder = cache_folder() / "gotools" / f"{KUBEVIRT_CRDS}-{fingerprint(*inputs)}"
    result = folder / f"{KUBEVIRT_CRDS}.yaml"
    if not result.exists():
        with _locked(folder / "lock"):
            if not result.exists():
                go_mod = (source / "go.mod").read_text()
                go = find_go(wanted=wanted_go(go_mod))
                install_go(go)
                program = folder / KUBEVIRT_CRDS
                title = f"KubeVirt {required_version(go_mod, 'kubevirt.io/kubevirt')} CRDs"
                _build(go, cwd=source, package=".", output=program, flags="-s -w", title=title)
                text = subprocess.run([program], check=True, stdout=subprocess.PIPE).stdout
                partial = result.with_suffix(".partial")
                partial.write_bytes(text)
                partial.rename(result)
                program.unlink()
    return result


def _version(program: Path) -> str | None:
    """Return what a program says its version is, None if it does not run."""
    words = {"kubectl": ["version", "--client"], "helm": ["version"]}.get(program.name, ["--version"])
    try:
        answer = subprocess.run([program, *words], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file, so that two builds of the same thing at once do not collide."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"Another build holds {path}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(go: Go, *, cwd: Path, package: str, output: Path, flags: str, title: str) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    _say(f"Building {title} with Go {go.version} (once; kept in {output.parent})")
    started = time.monotonic()
    with _progress(title):
        done = subprocess.run(
            [go.program, "build", "-trimpath", "-ldflags", flags, "-o", partial, package],
            cwd=cwd,
            env={**os.environ, **GO_ENVIRONMENT},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        partial.unlink(missing_ok=True)
        tail = "\n".join(done.stdout.splitlines()[-20:])
        raise ToolError(f"building {title} failed (go build ended with {done.returncode}):\n{tail}")
    partial.rename(output)
    _say(f"  {title}: built in {time.monotonic() - started:.0f} s")


@contextmanager
def _progress(title: str) -> Iterator[None]:
    """Print a line now and then, so that nobody takes a build of minutes for a hang."""
    finished = threading.Event()
    started = time.monotonic()

    def report() -> None:
        while not finished.wait(PROGRESS_SECONDS):
            _say(f"  {title}: {time.monotonic() - started:.0f} s …")

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        finished.set()
        reporter.join()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.rig.gotools", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--all", action="store_true", help="everything: " + ", ".join([*TOOLS, KUBEVIRT_CRDS]))
    options = parser.parse_args(arguments)
    names = [*TOOLS, KUBEVIRT_CRDS] if options.all else options.names
    if not names:
        parser.error("name a tool or say --all")
    if shutil.which("setpriv") is None:
        _say("setpriv (util-linux) is missing: programs of the rig could outlive a killed test session")
        return 1
    try:
        for name in names:
            print(kubevirt_crds() if name == KUBEVIRT_CRDS else tool_path(name), flush=True)
    except ToolError as error:
        _say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
