# SPDX-License-Identifier: Apache-2.0
"""What a command line says of a QEMU process. Pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

_PROGRAM = re.compile(r"qemu-kvm|qemu-system-[a-z0-9_]+")


def is_qemu(executable: str | None) -> bool:
    """Say whether a path such as /usr/bin/qemu-system-x86_64 or /usr/libexec/qemu-kvm is QEMU's."""
    name = (executable or "").removesuffix(" (deleted)").rsplit("/", 1)[-1]
    return _PROGRAM.fullmatch(name) is not None


def guest_names(command_line: Sequence[str]) -> tuple[str, ...]:
    """Return each guest name on a QEMU command line: ``-name guest=NAME,debug-threads=on``, or ``-name NAME``."""
    names = []
    for value in _values(command_line, "name"):
        options = [option.replace("\0", ",") for option in value.replace(",,", "\0").split(",")]
        given = [option.partition("=")[2] for option in options if option.startswith("guest=")]
        names += given or options[:1]
    return tuple(names)


def uuids(command_line: Sequence[str]) -> tuple[str, ...]:
    """Return each ``-uuid`` on a QEMU command line, in lower case."""
    return tuple(value.lower() for value in _values(command_line, "uuid"))


def _values(command_line: Sequence[str], option: str) -> list[str]:
    return [value for word, value in itertools.pairwise(command_line) if word in {f"-{option}", f"--{option}"}]
