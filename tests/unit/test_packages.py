# SPDX-License-Identifier: Apache-2.0
"""Which distribution packages are asked for, and who installs them."""

import pytest

from tests.rig.packages import KERNEL, PACKAGES, Install, Nothing, Tell, decide, installed_packages, missing

ALL = frozenset(PACKAGES)


@pytest.mark.parametrize(
    ("installed", "has_venv", "needed"),
    [
        (ALL, False, ()),
        (ALL - {"numactl"}, False, ("numactl",)),
        (ALL - {"python3-venv"}, True, ()),
        (ALL - {"python3-venv"}, False, ("python3-venv",)),
        (ALL - {KERNEL}, False, (KERNEL,)),
        (ALL - {KERNEL} | {"linux-image-6.1.0-56-amd64"}, False, ()),
        (ALL - {KERNEL} | {"linux-image-6.12.95+deb12-amd64-unsigned"}, False, ()),
        (ALL - {KERNEL} | {"linux-image-6.1.0-56-cloud-amd64"}, False, (KERNEL,)),
        (ALL - {KERNEL} | {"linux-image-cloud-amd64"}, False, (KERNEL,)),
        (ALL - {KERNEL} | {"linux-image-6.1.0-56-arm64"}, False, (KERNEL,)),
        ((), False, tuple(PACKAGES)),
    ],
)
def test_what_is_missing(installed: frozenset[str], *, has_venv: bool, needed: tuple[str, ...]) -> None:
    assert missing(installed, has_venv=has_venv) == needed


@pytest.mark.parametrize("is_root", [True, False])
@pytest.mark.parametrize("has_apt", [True, False])
def test_nothing_missing_needs_nobody(*, is_root: bool, has_apt: bool) -> None:
    assert decide((), is_root=is_root, has_apt=has_apt) == Nothing()


def test_root_installs_what_is_missing() -> None:
    assert decide(("cpio", "kmod"), is_root=True, has_apt=True) == Install(("cpio", "kmod"))


def test_others_are_told_the_one_line() -> None:
    decision = decide(("cpio", "kmod"), is_root=False, has_apt=True)
    assert isinstance(decision, Tell)
    assert decision.message.splitlines()[-1].strip() == "apt-get install -y --no-install-recommends cpio kmod"


@pytest.mark.parametrize("is_root", [True, False])
def test_other_distributions_are_told_what_for(*, is_root: bool) -> None:
    decision = decide(("numactl",), is_root=is_root, has_apt=False)
    assert isinstance(decision, Tell)
    assert "numactl: numastat and migratepages" in decision.message


def test_removed_and_half_installed_packages_do_not_count() -> None:
    listing = "installed kmod\nconfig-files cpio\nhalf-configured udev\nnot-installed numactl\n\n"
    assert installed_packages(listing) == {"kmod"}
