# SPDX-License-Identifier: Apache-2.0
"""Other kernels of Debian for the emulated host, beside the machine's own.

    python -m tests.rig.kernels [NAME…]       prints a line with name and file for each; without any, all

A kernel is unpacked into the cache, never installed: apt-get works on a state of its own there, with the mirror and
the transport settings of the machine's own apt. What is in the cache already is not asked for again; to get a newer
one, delete the link `kernels/NAME`.
"""

import argparse
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.rig.gotoolchain import cache_folder

KERNELS: Mapping[str, tuple[str, ...]] = {
    "6.12": ("trixie", "bookworm-backports"),
    "newest": ("sid",),
}
"""The suites of Debian that have each kernel, the first that does being taken."""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# An image of Debian up to 13 has all; from 14 on the kernel is in linux-binary and the modules in linux-modules.
# Flavours (cloud, which has no 9p, and rt) and what goes with debuggers stand between version and architecture.
_PACKAGE = re.compile(r"linux-(?P<part>image|binary|modules)-(?P<release>\d[0-9.]*(?:\+deb[0-9.]+)?-amd64)")


class KernelError(Exception):
    """A kernel cannot be had; the message says why and what to do."""


@dataclass(frozen=True)
class KernelPackages:
    """The packages that make one kernel, by its release as `uname -r` gives it."""

    release: str
    packages: tuple[str, ...]


def newest_packages(names: Iterable[str]) -> KernelPackages | None:
    """Return the newest kernel among package names, or None when there is no complete one.

    Versions compare by their numbers.
    """
    parts: dict[str, set[str]] = {}
    for name in names:
        found = _PACKAGE.fullmatch(name.strip())
        if found:
            parts.setdefault(found["release"], set()).add(found["part"])
    whole: list[KernelPackages] = []
    for release, there in parts.items():
        wanted = ("binary", "modules") if there >= {"binary", "modules"} else ("image",)
        if there.issuperset(wanted) and not there & ({"binary", "modules"} - set(wanted)):
            whole.append(KernelPackages(release, tuple(f"linux-{part}-{release}" for part in wanted)))
    return max(whole, key=lambda each: (_numbers(each.release), each.release), default=None)


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release))


def mirror(targets: str) -> str:
    """Return the address of Debian's archive in the answer of `apt-get indextargets`, one `ORIGIN SUITE URI` a line.

    Security updates come from another archive, which has no other suites. Raises KernelError when there is none.
    """
    rows = [line.split() for line in targets.splitlines()]
    found = [row[2] for row in rows if len(row) == 3 and row[0] == "Debian" and not row[1].endswith("-security")]
    if not found:
        raise KernelError(
            "apt-get on this machine knows no archive of Debian to ask for other kernels; "
            "run `apt-get update` as root, or add the archive to its sources"
        )
    return found[0]


def kernel_file(folder: Path, release: str) -> Path:
    """Return where in its folder the kernel of a release lies once it is unpacked."""
    return folder / "boot" / f"vmlinuz-{release}"


def get(name: str) -> Path:
    """Return the file of a kernel in `KERNELS`, downloaded unless the cache has it. Raises KernelError."""
    link = cache_folder() / "kernels" / name
    if not link.exists():
        missing = [each for each in ("apt-get", "dpkg", "depmod") if _find(each) is None]
        if missing:
            raise KernelError(f"not installed: {', '.join(missing)}; other kernels can only be had on Debian")
        link.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="apt-", dir=link.parent) as state:
            folder = _download(name, Path(state))
        link.unlink(missing_ok=True)
        link.symlink_to(folder.name)
    folder = link.resolve()
    return kernel_file(folder, folder.name)


def _download(name: str, state: Path) -> Path:
    """Unpack the kernel of a name into a folder of the cache named like its release, and return the folder."""
    uri = mirror(
        _run(["apt-get", "indextargets", "--format", "$(ORIGIN) $(RELEASE) $(REPO_URI)", "Created-By: Packages"])
    )
    tried: list[str] = []
    for suite in KERNELS[name]:
        print(f"Looking for kernel {name} in Debian's suite {suite}", file=sys.stderr, flush=True)
        environment = _private_apt(state / suite, f"deb [signed-by={KEYRING}] {uri} {suite} main")
        try:
            _run(["apt-get", "update"], env=environment)
        except KernelError as error:
            tried.append(f"{suite}: {error}")
            continue
        names = [
            each
            for part in ("image", "binary", "modules")
            for each in _run(["apt-cache", "pkgnames", f"linux-{part}-"], env=environment).splitlines()
        ]
        found = newest_packages(names)
        if found:
            return _unpack(found, state / suite, environment)
        tried.append(f"{suite}: it has no kernel for amd64")
    raise KernelError(f"the mirror {uri} has no kernel {name}:\n" + "\n".join(tried))


def _private_apt(state: Path, source: str) -> dict[str, str]:
    """Make apt-get a state of its own in a folder, and return the environment in which it uses that."""
    for folder in ("lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    (state / "sources.list").write_text(f"{source}\n")
    settings = {
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "Dir::Etc::SourceList": state / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Parts": "/dev/null",  # or hooks there would clean the machine's own cache
        "Dir::Etc::Main": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "",  # its own user could not write below this person's home
        "Acquire::Languages": "none",
        # A mirror that is some weeks old has still got what it signed.
        "Acquire::Check-Valid-Until": "false",
    }
    own = "".join(f'{key} "{value}";\n' for key, value in settings.items())
    transport = "".join(
        f"{line}\n"
        for line in _run(["apt-config", "dump", "Acquire"]).splitlines()
        if re.match(r"Acquire::(https?|ftp|tor)\b.*\".+\"", line)
    )
    (state / "apt.conf").write_text(transport + own)
    return {**os.environ, "APT_CONFIG": str(state / "apt.conf"), "LC_ALL": "C"}


def _unpack(kernel: KernelPackages, state: Path, environment: Mapping[str, str]) -> Path:
    """Download and unpack the packages of a kernel so that the emulated host can boot it, and return the folder."""
    kernels = cache_folder() / "kernels"
    folder = kernels / kernel.release
    if kernel_file(folder, kernel.release).exists():
        return folder
    print(f"Downloading {' '.join(kernel.packages)}", file=sys.stderr, flush=True)
    _run(["apt-get", "download", *kernel.packages], env=environment, cwd=state)
    partial = Path(tempfile.mkdtemp(prefix=f"{kernel.release}.partial-", dir=kernels))
    try:
        partial.chmod(0o755)
        for package in sorted(state.glob("*.deb")):
            _run(["dpkg", "-x", str(package), str(partial)])
        _arrange(partial, kernel.release)
        _run([_find("depmod") or "depmod", "-b", str(partial), kernel.release])
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _arrange(folder: Path, release: str) -> None:
    """Bring packages of every release of Debian into one shape: boot/vmlinuz-RELEASE and plain lib/modules/RELEASE.

    The initramfs has no program that could unpack modules.
    """
    if not (folder / "lib").exists():
        (folder / "lib").symlink_to("usr/lib")
    file = kernel_file(folder, release)
    beside_modules = folder / "lib/modules" / release / "vmlinuz"
    if not file.exists() and beside_modules.exists():
        file.parent.mkdir(exist_ok=True)
        beside_modules.rename(file)
    if not file.exists() or not (folder / "lib/modules" / release).is_dir():
        raise KernelError(f"the packages of kernel {release} have another shape than is known: look into {folder}")
    for module in (folder / "lib/modules" / release).rglob("*.ko.xz"):
        module.with_suffix("").write_bytes(lzma.decompress(module.read_bytes()))
        module.unlink()


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _run(command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, check=False)
    if done.returncode:
        raise KernelError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Get kernels and print where they are."""
    parser = argparse.ArgumentParser(prog="python -m tests.rig.kernels", description="Get other kernels of Debian.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(KERNELS)} (all)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in KERNELS]
    if unknown:
        parser.error(f"unknown kernel {', '.join(unknown)}; there are {', '.join(KERNELS)}")
    try:
        for name in options.names or KERNELS:
            print(name, get(name), flush=True)
    except KernelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
