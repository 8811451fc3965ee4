# SPDX-License-Identifier: Apache-2.0
"""Where QEMU says its RAM blocks are: its own records, read from its heap. Nothing is stopped and nothing is written.

A record (struct RAMBlock, include/exec/ramblock.h, later include/system/ramblock.h, the same since QEMU 3.0) has, in
words of the host: address, one other, offset, used length, greatest length, a callback, flags of 32 bits, and then the
name: ID or /objects/ID, behind the path of the device where a device owns it.
A match counts only when address and both lengths are those of a mapping and a backend.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator

from .cells import Backend
from .kernel import Kernel
from .mappings import Mapping
from .ram_ranges import fits, ram_ranges

_HEAP = "[heap]"
_BATCH = 4 << 20
_OVERLAP = 1024
"""More than a record has up to the end of its name."""
_MOST = 256 << 20
"""Bytes of heap that are looked at: RAM blocks are made first of all."""
_PAGE = 4096
_WORD = struct.Struct("=Q")
_NAME = re.compile(rb".{12}(?:[ -~]{0,200}/)?([!-.0-~]{1,255})\0", re.DOTALL)
"""Callback, flags, and a name of printable characters up to its end."""


def ram_block_addresses(
    pid: int, kernel: Kernel, backends: Iterable[Backend], mappings: Iterable[Mapping]
) -> dict[str, int]:
    """Return the address of each backend that QEMU's records tell without contradiction.

    Empty where its memory may not be read: that needs CAP_SYS_PTRACE, and LSMs may refuse it (ptrace(2)).
    """
    mappings, backends = tuple(mappings), tuple(backends)
    expected = {
        (each.start, _whole_pages(backend.size), backend.id)
        for each in ram_ranges(mappings)
        for backend in backends
        if fits(backend, each)
    }
    starts = {start for start, _, _ in expected}
    found: set[tuple[str, int]] = set()
    try:
        for batch in _batches(pid, kernel, mappings):
            records = (record for start in starts for record in _records(batch, start))
            found |= {(record[2], record[0]) for record in records if record in expected}
    except OSError:
        return {}
    names, addresses = Counter(name for name, _ in found), Counter(address for _, address in found)
    return {name: address for name, address in found if names[name] == addresses[address] == 1}


def _records(batch: bytes, start: int) -> Iterator[tuple[int, int, str]]:
    """Yield address, length and the last part of the name of whatever looks like a record of a block at `start`."""
    needle = _WORD.pack(start)
    position = batch.find(needle)
    while position >= 0:
        lengths = batch[position + 24 : position + 40]
        name = _NAME.match(batch, position + 40)
        if len(lengths) == 2 * _WORD.size and lengths[:8] == lengths[8:] and name is not None:
            yield start, _WORD.unpack_from(lengths)[0], name[1].decode("ascii")
        position = batch.find(needle, position + 1)


def _whole_pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _batches(pid: int, kernel: Kernel, mappings: Iterable[Mapping]) -> Iterator[bytes]:
    left = _MOST
    for mapping in mappings:
        if mapping.path == _HEAP:
            for start in range(mapping.start, min(mapping.end, mapping.start + left), _BATCH):
                yield kernel.read_memory(pid, start, min(_BATCH + _OVERLAP, mapping.end - start))
            left -= mapping.end - mapping.start
