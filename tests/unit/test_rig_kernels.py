# SPDX-License-Identifier: Apache-2.0
"""Which packages make the newest kernel, where they come from and where they go."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.guest import modules_folder, qemu_command
from tests.rig.kernels import KernelError, KernelPackages, get, kernel_file, main, mirror, newest_packages


@pytest.mark.parametrize(
    ("names", "packages"),
    [
        ([], None),
        (["linux-image-amd64", "linux-image-cloud-amd64", "linux-image-6.12.9+deb13-cloud-amd64"], None),
        (
            ["linux-image-6.12.9+deb13-amd64", "linux-image-6.12.117+deb13-amd64", "linux-image-6.12.43+deb13-amd64"],
            KernelPackages("6.12.117+deb13-amd64", ("linux-image-6.12.117+deb13-amd64",)),
        ),
        (
            [
                "linux-image-6.12.9+deb13-amd64",
                "linux-image-6.12.10+deb13-amd64-unsigned",
                "linux-image-6.12.10+deb13-rt-amd64",
                "linux-image-6.12.10+deb13-amd64-dbg",
            ],
            KernelPackages("6.12.9+deb13-amd64", ("linux-image-6.12.9+deb13-amd64",)),
        ),
        (
            [
                "linux-image-7.2.13+deb14-amd64",
                "linux-binary-7.2.13+deb14-amd64",
                "linux-binary-unsigned-7.2.13+deb14-amd64",
                "linux-modules-7.2.13+deb14-amd64",
                "linux-image-6.19.1+deb14-amd64",
            ],
            KernelPackages(
                "7.2.13+deb14-amd64", ("linux-binary-7.2.13+deb14-amd64", "linux-modules-7.2.13+deb14-amd64")
            ),
        ),
        (
            [
                "linux-image-7.3.0+deb14-amd64",
                "linux-modules-7.3.0+deb14-amd64",
                "linux-image-7.2.0+deb14-amd64",
                "linux-binary-7.2.0+deb14-amd64",
                "linux-modules-7.2.0+deb14-amd64",
            ],
            KernelPackages("7.2.0+deb14-amd64", ("linux-binary-7.2.0+deb14-amd64", "linux-modules-7.2.0+deb14-amd64")),
        ),
    ],
    ids=["none", "flavours only", "by number", "no debugging", "in two packages", "half of one is none"],
)
def test_the_newest_kernel_and_its_packages(names: list[str], packages: KernelPackages | None) -> None:
    assert newest_packages(names) == packages


def test_the_mirror_is_the_machines_own() -> None:
    targets = (
        "Someone nodistro http://c/\nDebian bookworm-security http://b/debian-security/\n"
        "Debian bookworm http://a/debian/\nDebian bookworm-updates http://d/debian/\n"
    )
    assert mirror(targets) == "http://a/debian/"
    with pytest.raises(KernelError, match="no archive of Debian"):
        mirror("Debian bookworm-security http://b/\nSomeone nodistro http://c/\n")


def test_what_is_in_the_cache_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NUMAPLACEMENT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    folder = tmp_path / "kernels" / "6.12.1-amd64"
    folder.mkdir(parents=True)
    (folder.parent / "6.12").symlink_to(folder.name)
    assert get("6.12") == kernel_file(folder, "6.12.1-amd64") == folder / "boot" / "vmlinuz-6.12.1-amd64"
    assert main(["6.12"]) == 0
    assert capsys.readouterr().out == f"6.12 {folder}/boot/vmlinuz-6.12.1-amd64\n"


def test_an_unknown_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["5.10"])
    assert "unknown kernel 5.10; there are 6.12, newest" in capsys.readouterr().err


def test_the_guest_is_told_where_the_modules_of_another_kernel_are(tmp_path: Path) -> None:
    kernel = kernel_file(tmp_path, "7.2")
    kernel.parent.mkdir()
    kernel.touch()
    assert modules_folder(kernel) is None
    (tmp_path / "lib" / "modules").mkdir(parents=True)
    assert modules_folder(kernel) == tmp_path / "lib" / "modules"
    assert modules_folder(Path("/boot/vmlinuz-1")) is None
    command = qemu_command(
        kernel=kernel,
        initramfs=tmp_path / "initramfs",
        console=tmp_path / "console.log",
        shared=tmp_path / "shared",
        python=Path("/usr/bin/python3"),
        kernel_args=[],
        qemu_opts=[],
    )
    assert f"rig.modules={tmp_path}/lib/modules" in command[command.index("-append") + 1].split()
