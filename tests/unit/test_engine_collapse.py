# SPDX-License-Identifier: Apache-2.0
"""Which split huge pages are rebuilt, and what comes of it: decisions, without a kernel."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import pytest

from numaplacement.engine.collapse import Blocks, Collapsed, collapse_blocks, split_blocks
from numaplacement.engine.errors import Stopped
from numaplacement.engine.kernel import Kernel
from numaplacement.engine.mappings import Kind, Mapping
from numaplacement.engine.process import HeldProcess
from numaplacement.engine.reasons import Reason
from numaplacement.engine.survey import FILE, HEAD, HUGE, SHARED, MappingPages, Survey, survey_of
from numaplacement.engine.targets import Targets

HUGE_SIZE = 2 << 20
PAGES = 512
START = 8 * HUGE_SIZE


def survey(
    flags: int,
    *,
    nodes: dict[int, int] | None = None,
    kind: Kind = Kind.ANON,
    start: int = START,
    present: range = range(3 * PAGES),
    page_size: int = 4096,
) -> Survey:
    """Three huge pages' worth of memory on NUMA node 0 but for the pages given."""
    numa_node = np.zeros(len(present), dtype=np.int16)
    for page, node in (nodes or {}).items():
        numa_node[page] = node
    mapping = Mapping(start=start, end=start + 3 * HUGE_SIZE, path="", kind=kind, page_size=page_size)
    page = np.array(present, dtype=np.uint32)
    return survey_of(
        (MappingPages(mapping=mapping, page=page, numa_node=numa_node, flags=np.full(page.size, flags, np.uint8)),)
    )


def found(before: Survey, after: Survey, target: int | None = 0) -> list[int]:
    blocks = split_blocks(before, after, targets=Targets(default=target), huge=HUGE_SIZE)
    assert all(each.numa_node == target for each in blocks)
    return [int(address) // HUGE_SIZE for each in blocks for address in each.addresses]


BEFORE = int(HUGE | HEAD)


@pytest.mark.parametrize(
    ("after", "numbers"),
    [
        pytest.param(survey(int(HEAD)), [8, 9, 10], id="all split"),
        pytest.param(survey(BEFORE), [], id="none split"),
        pytest.param(survey(int(HEAD), nodes={PAGES: 1}), [8, 10], id="one page elsewhere"),
        pytest.param(survey(int(HEAD), present=range(1, 3 * PAGES)), [9, 10], id="one page gone"),
        pytest.param(survey(int(HEAD | SHARED)), [], id="other processes map it too"),
        pytest.param(survey(int(HEAD), kind=Kind.DEVICE), [], id="of a driver"),
        pytest.param(survey(int(HEAD | FILE), kind=Kind.FILE), [], id="of a file"),
        pytest.param(survey(int(HEAD | FILE | SHARED), kind=Kind.SHMEM), [8, 9, 10], id="shared memory"),
        pytest.param(survey(int(HEAD), start=START + 4096), [9, 10], id="the mapping begins inside a huge page"),
    ],
)
def test_ranges_that_were_huge_and_lie_whole_on_the_target(after: Survey, numbers: list[int]) -> None:
    kind = after.mappings[0].kind
    assert found(survey(BEFORE, kind=kind), after) == numbers


def test_what_was_not_huge_before_is_not_made_so() -> None:
    assert found(survey(int(HEAD)), survey(int(HEAD))) == []


def test_nothing_where_nothing_was_asked() -> None:
    assert found(survey(BEFORE), survey(int(HEAD)), target=None) == []


@dataclass
class Scene:
    """A kernel that answers each call with the next errno, in the time given."""

    answers: list[int] = field(default_factory=list)
    seconds: float = 0.0
    probe: int = 0
    now: float = 0.0
    asked: list[int] = field(default_factory=list)
    slept: float = 0.0
    free: int = 1 << 40
    rooms: int = 0
    check: Callable[[], None] = lambda: None

    def run(self, count: int) -> Collapsed:
        scene = self

        class Simulated(Kernel):
            def collapse(self, pidfd: int, address: int, length: int) -> int:
                assert pidfd == 9
                if length == 0:
                    return scene.probe
                assert length == HUGE_SIZE
                scene.asked.append(address)
                scene.now += scene.seconds
                return scene.answers.pop(0) if scene.answers else 0

            def sleep(self, seconds: float) -> None:
                scene.slept += seconds

            def has_ended(self, pidfd: int) -> bool:  # noqa: ARG002
                return False

            def read(self, path: object) -> str:  # noqa: ARG002
                return f"1 (qemu) S {'0 ' * 18}77 {'0 ' * 20}"

        addresses = np.arange(count, dtype=np.uint64) * np.uint64(HUGE_SIZE)
        return collapse_blocks(
            HeldProcess(pid=1, pidfd=9, kernel=Simulated()),
            (Blocks(numa_node=3, addresses=addresses),) if count else (),
            huge=HUGE_SIZE,
            room=self.room,
            check=self.check,
            clock=lambda: self.now,
            watched=nullcontext,
            time_slice=0.02,
        )

    def room(self, numa_node: int) -> int:
        assert numa_node == 3
        self.rooms += 1
        return self.free


def test_all_rebuilt_with_pauses_as_long_as_the_work() -> None:
    scene = Scene(seconds=0.015)
    result = scene.run(5)
    assert result == Collapsed(rebuilt=5 * HUGE_SIZE)
    assert scene.asked == [number * HUGE_SIZE for number in range(5)]
    assert scene.slept == pytest.approx(0.06)
    assert scene.rooms == 5
    assert result.evidence() == ""


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EAGAIN, errno.EBUSY, errno.ENOMEM])
def test_what_is_said_of_one_range_ends_nothing(number: int) -> None:
    result = Scene(answers=[0, number, 0, number]).run(5)
    assert (result.rebuilt, result.not_rebuilt, result.unable) == (3 * HUGE_SIZE, 2 * HUGE_SIZE, 0)
    assert result.errors == Counter({number: 2})
    assert result.evidence() == f"MADV_COLLAPSE: {errno.errorcode[number]} 2 times"


def test_refusals_in_a_row_end_the_work() -> None:
    scene = Scene(answers=[errno.ENOMEM] * 99)
    result = scene.run(40)
    assert len(scene.asked) == 16
    assert (result.rebuilt, result.not_rebuilt) == (0, 40 * HUGE_SIZE)


@pytest.mark.parametrize(("probe", "answers", "asked"), [(errno.EINVAL, [], 0), (0, [0, errno.EPERM], 2)])
def test_a_kernel_that_refuses_it_altogether_is_asked_no_more(probe: int, answers: list[int], asked: int) -> None:
    scene = Scene(probe=probe, answers=answers)
    result = scene.run(4)
    assert len(scene.asked) == asked
    assert result.rebuilt + result.not_rebuilt == 4 * HUGE_SIZE
    assert result.unable in {errno.EINVAL, errno.EPERM}
    assert result.evidence() == f"this kernel refuses MADV_COLLAPSE: {errno.errorcode[result.unable]}"


def test_without_a_free_huge_page_on_the_target_nothing_is_asked() -> None:
    scene = Scene(free=HUGE_SIZE - 1)
    result = scene.run(2)
    assert scene.asked == []
    assert (result.not_rebuilt, result.no_room) == (2 * HUGE_SIZE, 2 * HUGE_SIZE)
    assert result.evidence() == "no free huge page on the target"


def test_a_cancel_ends_it_between_two_calls() -> None:
    def cancel() -> None:
        if len(scene.asked) == 3:
            raise Stopped(Reason.CANCELLED, "cancelled")

    scene = Scene()
    scene.check = cancel
    with pytest.raises(Stopped):
        scene.run(9)
    assert len(scene.asked) == 3


def test_nothing_to_do_asks_nothing() -> None:
    assert Scene(probe=errno.EINVAL).run(0) == Collapsed()
