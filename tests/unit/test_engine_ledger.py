# SPDX-License-Identifier: Apache-2.0
"""Runs at once never count on the same memory, in one process and in several."""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from numaplacement.engine.errors import EngineError
from numaplacement.engine.ledger import Ledger, Place, Reservation, Shortage, shortage

GIB = 1 << 30
ZERO, ONE = Place(0), Place(1)
HUGE = Place(0, 2 << 20)


def has(**bytes_of: int) -> Callable[[Place], int]:
    """What is available, by words such as zero=…"""
    by_name = {"zero": ZERO, "one": ONE, "huge": HUGE}
    return lambda place: {by_name[name]: count for name, count in bytes_of.items()}[place]


@pytest.fixture(params=["in files", "in one process"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "ledger" if request.param == "in files" else None)
    assert made.note == ""
    yield made
    made.close()


def reserved(ledger: Ledger, count: int, *, free: int, place: Place = ZERO) -> Reservation:
    reservation = ledger.reserve({place: count}, lambda _: free)
    assert isinstance(reservation, Reservation)
    return reservation


@pytest.mark.parametrize(
    ("wanted", "held", "missing"),
    [
        ({ZERO: 10}, {}, None),
        ({ZERO: 11}, {}, (ZERO, 11, 10, 0)),
        ({ZERO: 7}, {ZERO: 3}, None),
        ({ZERO: 8}, {ZERO: 3}, (ZERO, 8, 10, 3)),
        ({ZERO: 8}, {ONE: 3, HUGE: 9}, None),
        ({ZERO: 8, ONE: 21}, {}, (ONE, 21, 20, 0)),
        ({HUGE: 6}, {HUGE: 1}, (HUGE, 6, 5, 1)),
        ({ZERO: 0}, {ZERO: 99}, None),
        ({}, {}, None),
    ],
)
def test_what_fits(
    wanted: dict[Place, int], held: dict[Place, int], missing: tuple[Place, int, int, int] | None
) -> None:
    found = shortage(wanted, available=has(zero=10, one=20, huge=5), held=held)
    assert (found and (found.place, found.wanted, found.available, found.held)) == missing


def test_a_shortage_says_what_was_seen() -> None:
    assert str(Shortage(place=ONE, wanted=3 * GIB, available=2 * GIB, held=0)) == (
        "NUMA node 1 can take 2.0 GiB; 3.0 GiB are needed"
    )
    assert str(Shortage(place=HUGE, wanted=3 * GIB, available=4 * GIB, held=2 * GIB)) == (
        "the pool of 2.0 MiB pages of NUMA node 0 can take 4.0 GiB, and 2.0 GiB of that is reserved by other moves;"
        " 3.0 GiB are needed"
    )


def test_two_fit_and_a_third_does_not_until_one_ends(ledger: Ledger) -> None:
    first, second = reserved(ledger, 4 * GIB, free=10 * GIB), reserved(ledger, 4 * GIB, free=10 * GIB)
    third = ledger.reserve({ZERO: 4 * GIB}, has(zero=10 * GIB))
    assert third == Shortage(place=ZERO, wanted=4 * GIB, available=10 * GIB, held=8 * GIB)
    first.release()
    reserved(ledger, 4 * GIB, free=10 * GIB).release()
    second.release()


def test_what_is_used_is_held_no_longer(ledger: Ledger) -> None:
    first = reserved(ledger, 4 * GIB, free=10 * GIB)
    second = reserved(ledger, GIB, free=10 * GIB)
    first.used(3 * GIB, ZERO)
    assert (second.others(ZERO), first.others(ZERO), second.others(ONE)) == (GIB, GIB, 0)
    first.used(3 * GIB, ZERO)
    first.used(GIB, ONE)
    assert second.others(ZERO) == 0
    assert first.held() == {ZERO: 0}


def test_huge_pages_and_ordinary_memory_are_held_apart(ledger: Ledger) -> None:
    first = ledger.reserve({ZERO: 5, ONE: 7, HUGE: 3}, has(zero=10, one=10, huge=3))
    assert isinstance(first, Reservation)
    second = reserved(ledger, 5, free=10)
    assert [second.others(place) for place in (ZERO, ONE, HUGE)] == [5, 7, 3]
    assert isinstance(ledger.reserve({HUGE: 1}, has(huge=3)), Shortage)


def test_any_ending_releases(ledger: Ledger) -> None:
    with pytest.raises(RuntimeError), reserved(ledger, GIB, free=GIB) as reservation:
        raise RuntimeError
    assert not ledger.held_by_others()
    reservation.used(1, ZERO)
    reservation.release()
    assert not ledger.held_by_others()


def test_threads_that_reserve_at_once_never_get_more_than_there_is(ledger: Ledger) -> None:
    got: list[Reservation | Shortage] = []

    def reserve() -> None:
        got.extend(ledger.reserve({ZERO: 3}, has(zero=10)) for _ in range(3))

    threads = [threading.Thread(target=reserve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 12
    assert sum(isinstance(each, Reservation) for each in got) == 3


class Child:
    """A forked process that reserves, says what it got and then uses, releases or ends as it is told."""

    def __init__(self, directory: Path, count: int, free: int) -> None:
        answers, answer = os.pipe()
        orders, order = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                got = Ledger(directory).reserve({ZERO: count}, has(zero=free))
                os.write(answer, b"reserved" if isinstance(got, Reservation) else b"shortage")
                while os.read(orders, 1) == b"u" and isinstance(got, Reservation):
                    got.used(GIB, ZERO)
                    os.write(answer, b"used")
            finally:
                os._exit(0)
        os.close(answer)
        os.close(orders)
        self._answers, self._order = answers, order
        self.answer = os.read(answers, 100)

    def use(self) -> None:
        os.write(self._order, b"u")
        assert os.read(self._answers, 100) == b"used"

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._answers)
        os.close(self._order)


pytestmark = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")


def test_processes_see_one_another_and_a_killed_one_frees_what_it_held(tmp_path: Path) -> None:
    directory = tmp_path / "ledger"
    ledger = Ledger(directory)
    child = Child(directory, 6 * GIB, 10 * GIB)
    assert child.answer == b"reserved"
    own = reserved(ledger, 4 * GIB, free=10 * GIB)
    assert own.others(ZERO) == 6 * GIB
    child.use()
    assert own.others(ZERO) == 5 * GIB
    late = Child(directory, 2 * GIB, 10 * GIB)
    assert late.answer == b"shortage"
    late.end()
    child.end()
    assert own.others(ZERO) == 0
    assert len(list(directory.glob("*.held"))) == 2
    reserved(ledger, 6 * GIB, free=10 * GIB)
    assert len(list(directory.glob("*.held"))) == 2
    ledger.close()


def test_many_processes_at_once_never_get_more_than_there_is(tmp_path: Path) -> None:
    children = [Child(tmp_path / "ledger", 3, 10) for _ in range(6)]
    assert sorted(child.answer for child in children) == [b"reserved"] * 3 + [b"shortage"] * 3
    for child in children:
        child.end()


def test_the_directory_is_ours_alone(tmp_path: Path) -> None:
    directory = tmp_path / "ledger"
    reserved(Ledger(directory), 1, free=1)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}


def linked(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    path.symlink_to(path.parent / "elsewhere")


def open_to_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def lock_is_a_link(path: Path) -> None:
    path.mkdir(mode=0o700)
    (path.parent / "victim").write_text("untouched")
    (path / "lock").symlink_to(path.parent / "victim")


def lock_is_a_pipe(path: Path) -> None:
    path.mkdir(mode=0o700)
    os.mkfifo(path / "lock")


@pytest.mark.parametrize("prepare", [linked, open_to_all, lock_is_a_link, lock_is_a_pipe, Path.touch])
def test_a_directory_that_is_not_ours_alone_is_not_used_and_said_so(
    tmp_path: Path, prepare: Callable[[Path], None]
) -> None:
    path = tmp_path / "ledger"
    prepare(path)
    ledger = Ledger(path)
    assert re.match(r"moves by other processes are not taken into account: .*ledger: \S", ledger.note)
    first = reserved(ledger, 6, free=10)
    assert isinstance(ledger.reserve({ZERO: 6}, has(zero=10)), Shortage)
    first.release()
    assert not list(tmp_path.rglob("*.held"))
    assert not (tmp_path / "victim").exists() or (tmp_path / "victim").read_text() == "untouched"


def test_another_users_directory_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert "another user" in Ledger(tmp_path / "ledger").note


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    assert os.strerror(errno.ENOENT) in Ledger(tmp_path / "no" / "such").note


def test_strange_files_count_for_nothing_and_nothing_behind_a_link_is_removed(tmp_path: Path) -> None:
    directory, victim = tmp_path / "ledger", tmp_path / "victim"
    ledger = Ledger(directory)
    victim.write_text("0 0 99999\n")
    (directory / "link.held").symlink_to(victim)
    (directory / "folder.held").mkdir()
    os.mkfifo(directory / "pipe.held")
    (directory / "left.held").write_text("0 0 99999\n")
    reserved(ledger, 10, free=10)
    assert victim.read_text() == "0 0 99999\n"


def test_a_held_file_of_nonsense_counts_for_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    assert ledger._directory is not None
    held = ledger._directory.hold("what\n1 2\n0 0 x\n0 0 5\n")
    assert ledger.held_by_others() == {ZERO: 5}
    held.release()


def test_a_ledger_that_stays_locked_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numaplacement.engine.ledger._PATIENCE", 0.0)
    ledger, other = Ledger(tmp_path / "ledger"), Ledger(tmp_path / "ledger")
    assert other._directory is not None
    with other._directory.locked(0.0), pytest.raises(EngineError, match="hangs"):
        ledger.reserve({ZERO: 1}, has(zero=1))


def test_a_file_that_cannot_be_written_is_said_and_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "ledger")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(EngineError, match="No space left"):
        ledger.reserve({ZERO: 1}, has(zero=1))
    assert not ledger.held_by_others()
    assert not list((tmp_path / "ledger").glob("*.held"))
