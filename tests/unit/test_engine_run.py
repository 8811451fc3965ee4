# SPDX-License-Identifier: Apache-2.0
"""The engine's whole way in a simulated world: how each thing that can happen ends."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from numaplacement.engine.chunks import LEAST, START
from numaplacement.engine.errors import EngineError
from numaplacement.engine.reasons import Reason
from numaplacement.engine.verdict import Outcome, Stage, Verdict
from tests.unit.engine_world import MIB, PAGE, PID, Recorder, Region, SimulatedKernel, World, run_in

HEAP = 0x7F0000000000


def heap(pages: int = 3072, **more: Any) -> Region:
    """A mapping whose pages lie on NUMA nodes 1, 2 and 3 in turn of thirds."""
    return Region(start=HEAP, nodes=[1 + 3 * page // pages for page in range(pages)], **more)


def residue(verdict: Verdict) -> dict[Reason, int]:
    sums: dict[Reason, int] = {}
    for row in verdict.residue:
        sums[row.reason] = sums.get(row.reason, 0) + row.bytes
    return sums


def test_everything_moves(tmp_path: Path) -> None:
    world = World([heap(), Region(start=HEAP + 64 * MIB, nodes=[0, -1, 3, 2])])
    verdict = run_in(world, tmp_path)
    assert verdict.outcome is Outcome.PLACED
    assert world.bytes_on() == {0: 3075 * PAGE}
    assert (verdict.asked, verdict.on_target, verdict.moved) == (3075 * PAGE, 3075 * PAGE, 3074 * PAGE)
    assert (verdict.threads.followed, verdict.threads.cpus) == (2, {0, 1})
    assert world.affinity == {PID: {0, 1}, PID + 1: {0, 1}}
    assert (verdict.passes, verdict.calls.count) == (1, len(world.calls))
    assert "12.0 MiB of 12.0 MiB on NUMA node 0" in verdict.message


def test_progress_is_told_in_order_and_to_the_end(tmp_path: Path) -> None:
    watcher = Recorder()
    run_in(World([heap()]), tmp_path, watcher)
    stages = [progress.stage for progress in watcher.heard]
    assert stages[:2] == [Stage.SURVEY, Stage.THREADS]
    assert stages[-1] is Stage.VERIFY
    moves = [progress for progress in watcher.heard if progress.stage is Stage.MOVE]
    assert moves[-1].bytes_done == moves[-1].bytes_total == 12 * MIB
    assert [move.bytes_done for move in moves] == sorted(move.bytes_done for move in moves)


def test_what_a_call_has_moved_before_it_failed_is_counted(tmp_path: Path) -> None:
    world = World([heap()], at_call={2: errno.ENOMEM})

    def some() -> None:
        for page in range(100, 120):
            world.take(world.regions[0], page, 0)

    before = world.bytes_on().get(0, 0)
    world.hooks[2] = some
    watcher = Recorder()
    run_in(world, tmp_path, watcher)
    moves = [progress for progress in watcher.heard if progress.stage is Stage.MOVE]
    assert moves[-1].bytes_done == world.bytes_on()[0] - before == 36 * PAGE


def test_first_call_is_small(tmp_path: Path) -> None:
    world = World([heap()])
    run_in(world, tmp_path)
    assert world.calls[0] * PAGE == LEAST
    assert world.calls[1] * PAGE == START


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errno.ENOMEM, Reason.DESTINATION_FULL),
        (errno.EACCES, Reason.VM_CPUSET),
        (errno.ENODEV, Reason.NODE_HAS_NO_MEMORY),
        (errno.ENOSYS, Reason.SYSCALL_BLOCKED),
        (errno.EFAULT, Reason.UNEXPLAINED),
        (errno.EINVAL, Reason.UNEXPLAINED),
        (errno.E2BIG, Reason.UNEXPLAINED),
    ],
)
def test_a_call_that_fails_ends_the_run_and_names_why(tmp_path: Path, error: int, reason: Reason) -> None:
    world = World([heap()], at_call={2: error})
    verdict = run_in(world, tmp_path)
    assert verdict.outcome is Outcome.RESIDUE
    assert residue(verdict) == {reason: 12 * MIB - LEAST}
    assert verdict.moved == LEAST
    assert len(world.calls) == 2
    row = verdict.residue[0]
    assert errno.errorcode[error] in row.evidence
    assert row.remedy


def test_without_the_right_to_move_what_is_shared_it_goes_on_without(tmp_path: Path) -> None:
    world = World([heap(shared={5, 6})], at_call={1: errno.EPERM})
    verdict = run_in(world, tmp_path)
    assert residue(verdict) == {Reason.SHARED_WITHOUT_PRIVILEGE: 2 * PAGE}


def test_refused_altogether_without_privilege(tmp_path: Path) -> None:
    world = World([heap()], at_call={1: errno.EPERM, 2: errno.EPERM})
    assert residue(run_in(world, tmp_path)) == {Reason.NO_ACCESS: 12 * MIB}


@pytest.mark.parametrize("error", [errno.ESRCH, errno.EINVAL])
def test_the_process_ends_in_the_middle(tmp_path: Path, error: int) -> None:
    world = World([heap()], at_call={2: error})
    world.hooks[2] = lambda: setattr(world, "ended", True)
    verdict = run_in(world, tmp_path)
    assert verdict.outcome is Outcome.PROCESS_GONE
    assert (verdict.freed, verdict.after, verdict.residue) == (12 * MIB, (), ())
    assert verdict.calls.count == 1


def test_another_process_under_the_same_number_is_never_touched(tmp_path: Path) -> None:
    world = World([heap()])

    def another() -> None:
        """Only once the one before has ended can its number stand for another, and its pidfd tells (pidfd_open(2))."""
        world.started, world.ended = 778, True

    world.hooks[2] = another
    verdict = run_in(world, tmp_path)
    assert verdict.outcome is Outcome.PROCESS_GONE
    assert len(world.calls) == 2


def test_no_such_process(tmp_path: Path) -> None:
    assert run_in(World([heap()], ended=True), tmp_path).outcome is Outcome.PROCESS_GONE


def test_cancelled(tmp_path: Path) -> None:
    world = World([heap()])
    verdict = run_in(world, tmp_path, Recorder(cancel_after=1))
    assert verdict.outcome is Outcome.CANCELLED
    assert len(world.calls) == 1
    assert residue(verdict) == {Reason.CANCELLED: 12 * MIB - LEAST}


def test_hidden_pages_off_target_are_touched_and_moved(tmp_path: Path) -> None:
    world = World([heap(hidden=set(range(100, 2000))), Region(start=HEAP + 64 * MIB, nodes=[0] * 9, hidden={4})])
    verdict = run_in(world, tmp_path)
    assert (verdict.outcome, verdict.moved) == (Outcome.PLACED, 12 * MIB)
    assert verdict.before[0].bytes == 9 * PAGE
    assert world.regions[1].hidden == {4}
    assert world.touches == 2


def test_pages_that_go_on_hiding_are_named_and_placed_by_numa_maps(tmp_path: Path) -> None:
    world = World([heap(hidden=set(range(1000, 1100)))], touch_error=errno.EPERM)
    verdict = run_in(world, tmp_path)
    assert residue(verdict) == {Reason.HIDDEN_BY_NUMA_HINT: 100 * PAGE}
    assert {row.numa_node: row.bytes for row in verdict.residue} == {1: 24 * PAGE, 2: 76 * PAGE}


def test_cancelled_before_what_hides_is_touched(tmp_path: Path) -> None:
    world = World([heap(hidden=set(range(3072)))])
    verdict = run_in(world, tmp_path, Recorder(cancel_after=0))
    assert verdict.outcome is Outcome.CANCELLED
    assert (world.touches, world.calls) == (0, [])
    assert residue(verdict) == {Reason.HIDDEN_BY_NUMA_HINT: 12 * MIB}


def test_cancelled_when_nothing_was_left_to_do_is_placed(tmp_path: Path) -> None:
    verdict = run_in(World([Region(start=HEAP, nodes=[0] * 8)]), tmp_path, Recorder(cancel_after=0))
    assert verdict.outcome is Outcome.PLACED


def test_deadline(tmp_path: Path) -> None:
    world = World([heap()], speed=LEAST / 2)
    verdict = run_in(world, tmp_path, deadline=1.5, call_latency=10.0)
    assert verdict.outcome is Outcome.DEADLINE
    assert len(world.calls) == 1
    assert residue(verdict) == {Reason.DEADLINE: 12 * MIB - LEAST}


def test_bandwidth_holds_and_waiting_can_be_cancelled(tmp_path: Path) -> None:
    world = World([heap()])
    verdict = run_in(world, tmp_path, bandwidth=4 * MIB)
    assert verdict.outcome is Outcome.PLACED
    assert 2.5 < world.slept < 3.5
    assert max(world.calls) <= 256
    cancelled = World([heap()])
    impatient = Recorder()
    impatient.cancelled = lambda: cancelled.slept > 0.5  # type: ignore[method-assign]
    again = run_in(cancelled, tmp_path / "again", impatient, bandwidth=1024)
    assert again.outcome is Outcome.CANCELLED
    assert cancelled.slept < 1


def test_the_target_fills_up_by_others(tmp_path: Path) -> None:
    world = World([heap()])
    world.hooks[1] = lambda: world.safe.update({0: 3 * MIB})
    verdict = run_in(world, tmp_path)
    assert verdict.outcome is Outcome.RESIDUE
    assert residue(verdict)[Reason.DESTINATION_FULL] == 12 * MIB - 3 * MIB
    assert world.safe[0] >= 0


def test_refused_pages_are_found_one_by_one_and_tried_no_more_than_three_times(tmp_path: Path) -> None:
    world = World([heap(refused={0, 700, 701, 3071}, busy={9})])
    verdict = run_in(world, tmp_path)
    assert residue(verdict) == {Reason.EXTRA_REFERENCE: 4 * PAGE, Reason.BUSY: PAGE}
    assert verdict.on_target == 12 * MIB - 5 * PAGE
    assert sum(size == 1 for size in world.calls) <= 4 * 3 + 3
    assert verdict.passes <= 3


def test_refused_pages_of_a_process_with_pinned_buffers_are_pinned_by_io(tmp_path: Path) -> None:
    verdict = run_in(World([heap(refused={4})], pinned_kib=256), tmp_path)
    assert residue(verdict) == {Reason.PINNED_BY_IO: PAGE}


def test_around_many_refused_in_a_row_all_else_moves(tmp_path: Path) -> None:
    refused = set(range(1000, 1300))
    verdict = run_in(World([heap(refused=refused)]), tmp_path)
    assert sum(residue(verdict).values()) <= 300 * PAGE
    assert verdict.moved >= 12 * MIB - 300 * PAGE


def test_a_mapping_refused_as_a_whole_is_given_up(tmp_path: Path) -> None:
    world = World([heap(refused=set(range(3072))), Region(start=HEAP + 64 * MIB, nodes=[2] * 600)])
    verdict = run_in(world, tmp_path)
    rows = residue(verdict)
    assert set(rows) == {Reason.EXTRA_REFERENCE, Reason.NOT_ATTEMPTED}
    assert sum(rows.values()) == 12 * MIB
    assert 64 <= rows[Reason.EXTRA_REFERENCE] // PAGE <= 200
    assert world.regions[1].nodes == [0] * 600
    assert len(world.calls) < 250


def test_what_appears_meanwhile_is_moved_in_another_pass(tmp_path: Path) -> None:
    late = Region(start=HEAP + 64 * MIB, nodes=[-1] * 16)
    world = World([heap(), late])
    world.hooks[3] = lambda: late.nodes.__setitem__(slice(0, 4), [2] * 4)
    verdict = run_in(world, tmp_path)
    assert verdict.outcome is Outcome.PLACED
    assert (verdict.passes, verdict.grown) == (2, 4 * PAGE)


def test_what_appears_at_the_very_end_is_called_new(tmp_path: Path) -> None:
    late = Region(start=HEAP + 64 * MIB, nodes=[-1] * 64)
    world = World([heap(512), late])

    def appear() -> None:
        late.nodes[late.nodes.index(-1)] = 3

    world.hooks = dict.fromkeys(range(1, 30), appear)
    verdict = run_in(world, tmp_path)
    assert verdict.passes == 4
    assert residue(verdict) == {Reason.NEW_ON_SOURCE: PAGE}
    assert (
        run_in(World(world.regions, hooks=world.hooks), tmp_path / "2", tolerance_bytes=PAGE).outcome is Outcome.PLACED
    )


def test_memory_given_back_meanwhile(tmp_path: Path) -> None:
    world = World([heap()])
    world.hooks[1] = lambda: world.regions[0].nodes.__setitem__(slice(3000, 3072), [-1] * 72)
    verdict = run_in(world, tmp_path)
    assert (verdict.outcome, verdict.freed, verdict.passes) == (Outcome.PLACED, 72 * PAGE, 1)


def test_program_text_of_others_is_left_and_not_asked(tmp_path: Path) -> None:
    text = Region(
        start=HEAP + 64 * MIB,
        nodes=[2] * 10,
        path="/usr/lib/libc.so.6",
        permissions="r-xp",
        file=True,
        shared={1, 2, 3},
    )
    world = World([heap(), text])
    verdict = run_in(world, tmp_path)
    assert verdict.outcome is Outcome.PLACED
    assert residue(verdict) == {Reason.SHARED_FILE: 3 * PAGE}
    assert text.nodes == [0, 2, 2, 2, 0, 0, 0, 0, 0, 0]
    assert verdict.asked == 12 * MIB + 7 * PAGE


def test_pages_merged_with_other_vms_are_left_and_counted(tmp_path: Path) -> None:
    world = World([heap(600, flags="rd wr mg", shared=set(range(100)))])
    verdict = run_in(world, tmp_path)
    assert residue(verdict) == {Reason.KSM_SHARED: 100 * PAGE}
    assert verdict.moved == 500 * PAGE
    assert verdict.outcome is Outcome.RESIDUE


def test_pages_of_the_kernel_are_left_and_not_asked(tmp_path: Path) -> None:
    vcpu = Region(start=HEAP + 64 * MIB, nodes=[3] * 3, path="anon_inode:kvm-vcpu:0", permissions="rw-s", file=True)
    verdict = run_in(World([heap(), vcpu]), tmp_path)
    assert verdict.outcome is Outcome.PLACED
    assert residue(verdict) == {Reason.UNMIGRATABLE_MAPPING: 3 * PAGE}
    assert vcpu.nodes == [3] * 3


def test_shared_memory_moves_with_privilege_and_stays_without(tmp_path: Path) -> None:
    ram = Region(
        start=HEAP,
        nodes=[1] * 600,
        path="/memfd:pc.ram (deleted)",
        permissions="rw-s",
        file=True,
        shared=set(range(500)),
    )
    assert run_in(World([ram]), tmp_path).outcome is Outcome.PLACED
    ram.nodes = [1] * 600
    verdict = run_in(World([ram], own_capabilities=1 << 19), tmp_path / "without")
    assert residue(verdict) == {Reason.SHARED_WITHOUT_PRIVILEGE: 500 * PAGE}
    assert verdict.moved == 100 * PAGE


REFUSALS: list[tuple[dict[str, Any], dict[str, Any], Reason]] = [
    ({}, {"target": 9}, Reason.NODE_HAS_NO_MEMORY),
    ({"blocked": True}, {}, Reason.SYSCALL_BLOCKED),
    ({"own_mems": "2-3"}, {}, Reason.AGENT_CPUSET),
    ({"mems": "1-3"}, {}, Reason.VM_CPUSET),
    ({"files": ("/dev/vfio/11", "anon_inode:kvm-vfio"), "locked_kib": 12288}, {}, Reason.PINNED_BY_DEVICE),
    ({"files": ("/dev/iommu",), "pinned_kib": 12288}, {}, Reason.PINNED_BY_DEVICE),
    ({"files": ("/dev/sev",)}, {}, Reason.ENCRYPTED_GUEST),
    ({"command_line": "qemu\0-object\0sev-snp-guest,id=sev0\0"}, {}, Reason.ENCRYPTED_GUEST),
    ({"command_line": 'qemu\0-object\0{"qom-type":"tdx-guest","id":"t"}\0'}, {}, Reason.ENCRYPTED_GUEST),
    ({"policy": 1}, {}, Reason.REALTIME),
    ({"safe": {0: 11 * MIB, 1: 0, 2: 0, 3: 0}}, {}, Reason.DESTINATION_FULL),
]


@pytest.mark.parametrize(("what", "wish", "reason"), REFUSALS)
def test_refused_and_nothing_touched(
    tmp_path: Path, what: dict[str, Any], wish: dict[str, Any], reason: Reason
) -> None:
    world = World([heap()], **what)
    verdict = run_in(world, tmp_path, **wish)
    assert verdict.outcome is Outcome.REFUSED
    assert verdict.refusals[0].reason is reason
    assert verdict.refusals[0].evidence in verdict.message
    assert verdict.refusals[0].remedy
    assert (world.calls, world.affinity[PID]) == ([], set(range(8)))
    assert verdict.before == verdict.after
    assert residue(verdict)[reason] == 12 * MIB


@pytest.mark.parametrize(("what", "wish", "reason"), REFUSALS)
def test_refused_all_the_same_when_every_page_hides(
    tmp_path: Path, what: dict[str, Any], wish: dict[str, Any], reason: Reason
) -> None:
    world = World([heap()], hiding=True, **what)
    verdict = run_in(world, tmp_path, **wish)
    assert verdict.outcome is Outcome.REFUSED
    assert verdict.refusals[0].reason is reason
    assert (world.calls, world.affinity[PID]) == ([], set(range(8)))
    assert residue(verdict)[reason] == 12 * MIB


def test_pinned_bytes_are_attributed_and_the_rest_was_not_attempted(tmp_path: Path) -> None:
    small = Region(start=HEAP - 64 * MIB, nodes=[2] * 100)
    world = World([small, heap()], files=("/dev/vfio/11",), locked_kib=12 * 1024)
    verdict = run_in(world, tmp_path)
    assert residue(verdict) == {Reason.PINNED_BY_DEVICE: 12 * MIB, Reason.NOT_ATTEMPTED: 100 * PAGE}
    assert verdict.refusals[0].evidence == (
        "QEMU holds /dev/vfio/11; VmLck 12,288 kB of which 0 kB is mlock; VmPin 0 kB"
    )


def test_locked_memory_is_not_pinned_memory(tmp_path: Path) -> None:
    world = World([heap(flags="rd wr lo")], locked_kib=12 * 1024)
    assert run_in(world, tmp_path).outcome is Outcome.PLACED


@pytest.mark.parametrize(("more_kib", "outcome"), [(0, Outcome.PLACED), (12 * 1024, Outcome.REFUSED)])
def test_with_a_device_only_what_mlock_does_not_explain_is_pinned(
    tmp_path: Path, more_kib: int, outcome: Outcome
) -> None:
    world = World([heap(flags="rd wr lo")], files=("/dev/vfio/11",), locked_kib=12 * 1024 + more_kib)
    assert run_in(world, tmp_path).outcome is outcome


@pytest.mark.parametrize(
    "what",
    [
        {"policy": 1},
        {"mems": "1-3"},
        {"files": ("/dev/vfio/11", "/dev/sev"), "locked_kib": 12 * 1024},
        {"safe": dict.fromkeys(range(4), 0)},
    ],
)
def test_nothing_to_move_is_nothing_to_refuse(tmp_path: Path, what: dict[str, Any]) -> None:
    world = World([Region(start=HEAP, nodes=[0] * 3072)], **what)
    assert run_in(world, tmp_path).outcome is Outcome.PLACED
    assert world.calls == []


def test_pinned_memory_that_is_on_target_already_is_no_obstacle(tmp_path: Path) -> None:
    ram = Region(start=HEAP, nodes=[0] * 3072, refused=set(range(3072)))
    world = World([ram, Region(start=HEAP + 64 * MIB, nodes=[2] * 9)], files=("/dev/vfio/11",), locked_kib=12 * 1024)
    assert run_in(world, tmp_path).outcome is Outcome.PLACED


@pytest.mark.parametrize(("policy", "refused"), [("bind:1-3", True), ("bind=static:0-3", False), ("prefer:1", False)])
def test_strict_binding(tmp_path: Path, policy: str, refused: bool) -> None:
    verdict = run_in(World([heap(policy=policy), Region(start=HEAP + 64 * MIB, nodes=[1] * 4)]), tmp_path)
    assert (verdict.outcome is Outcome.REFUSED) == refused
    if refused:
        assert residue(verdict) == {Reason.STRICT_BINDING: 12 * MIB, Reason.NOT_ATTEMPTED: 4 * PAGE}


def test_a_small_bound_buffer_is_no_obstacle(tmp_path: Path) -> None:
    world = World([heap(), Region(start=HEAP + 64 * MIB, nodes=[1] * 9, policy="bind:1")])
    assert run_in(world, tmp_path).outcome is Outcome.PLACED


def test_dry_run(tmp_path: Path) -> None:
    world = World([heap()])
    verdict = run_in(world, tmp_path, dry_run=True)
    assert verdict.outcome is Outcome.PLANNED
    assert residue(verdict) == {Reason.PLANNED: 12 * MIB}
    assert (world.calls, world.affinity[PID]) == ([], set(range(8)))


def test_tolerance_is_a_share_too(tmp_path: Path) -> None:
    world = World([heap(refused=set(range(30)))])
    assert run_in(world, tmp_path, tolerance_share=0.01).outcome is Outcome.PLACED
    assert (
        run_in(World([heap(refused=set(range(31)))]), tmp_path / "more", tolerance_share=0.01).outcome
        is Outcome.RESIDUE
    )


def test_threads_are_left_when_they_are_to_be(tmp_path: Path) -> None:
    world = World([heap()])
    run_in(world, tmp_path, follow_threads=False)
    assert world.affinity[PID] == set(range(8))


@pytest.mark.parametrize("error", [PermissionError, NotADirectoryError])
def test_where_nothing_can_be_read_there_is_no_verdict_but_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    def refuse(_self: SimulatedKernel) -> str:
        raise error(13, "no", f"/proc/{PID}/smaps")

    monkeypatch.setattr(SimulatedKernel, "_smaps", refuse)
    with pytest.raises(EngineError, match=str(PID)):
        run_in(World([heap()]), tmp_path)


ONE_CELL = "qemu\0-m\x0012\0-object\0memory-backend-ram,id=ram0,size=12M\0-numa\0node,nodeid=0,memdev=ram0\0"


def test_a_cell_the_guest_has_not_is_named_and_nothing_is_touched(tmp_path: Path) -> None:
    world = World([heap()], command_line=ONE_CELL)
    verdict = run_in(world, tmp_path, target=None, cells={5: 0})
    assert verdict.outcome is Outcome.REFUSED
    assert set(residue(verdict)) == {Reason.CELLS_UNKNOWN}
    assert "5" in verdict.refusals[0].evidence
    assert world.calls == []


def test_only_the_memory_of_the_cell_moves(tmp_path: Path) -> None:
    ram = Region(start=HEAP, nodes=[1] * 3072, flags="rd wr mr mw me ac dc")  # as QEMU marks guest RAM
    other = Region(start=HEAP + 64 * MIB, nodes=[2] * 100)
    world = World([ram, other], command_line=ONE_CELL)
    verdict = run_in(world, tmp_path, target=None, cells={0: 3})
    assert verdict.outcome is Outcome.PLACED
    assert set(world.regions[0].nodes) == {3}
    assert set(other.nodes) == {2}
    assert residue(verdict) == {Reason.NO_CELL: 100 * PAGE}
