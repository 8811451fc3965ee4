# SPDX-License-Identifier: Apache-2.0
"""The shell round the decision: what is written when, what a failure leaves behind, and starting again anywhere."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Callable
from typing import Any

import pytest

from numaplacement.api.placement import NumaPlacementStatus
from numaplacement.api.resources import HOSTS, MIGRATIONS, PLACEMENTS, VMIS, Document, to_document
from numaplacement.apiserver.backoff import Backoff
from numaplacement.apiserver.errors import Conflict, Forbidden, Invalid, NotFound, TooManyRequests, Unavailable
from numaplacement.controller.__main__ import STUCK, complaint
from numaplacement.controller.handlers import note
from numaplacement.controller.settings import Rules
from numaplacement.controller.status import only_progress, same_status
from numaplacement.controller.store import Store
from numaplacement.controller.sweep import Sweep
from numaplacement.controller.worker import Worker
from numaplacement.controller.workqueue import WorkQueue
from tests.unit.controller_scene import NOW, ended, host_document, placement_document, residue, taken_up, vmi_document
from tests.unit.memory_api import Killed, MemoryApi, Name

KEY = ("prod", "db")
RULES = Rules(retry=10)


class Controller:
    """A controller over `api`, without kopf: events come to it when they are let through."""

    def __init__(self, api: MemoryApi, *, seconds: float = 0.0, status_interval: float = 2.0) -> None:
        self.api = api
        self.seconds = seconds
        self.store = Store(now=self._now)
        self.queue: WorkQueue[tuple[str, str]] = WorkQueue(clock=self._clock, chance=lambda: 0.0)
        self.worker = Worker(
            api=api,
            store=self.store,
            queue=self.queue,
            rules=RULES,
            status_interval=status_interval,
            now=self._now,
            clock=self._clock,
        )
        self.sweep = Sweep(
            api=api, store=self.store, queue=self.queue, interval=300, backoff=Backoff(), clock=self._clock
        )

    def _clock(self) -> float:
        return self.seconds

    def _now(self) -> datetime.datetime:
        return NOW + datetime.timedelta(seconds=self.seconds)

    def listen(self) -> None:
        """Hear of every change from now on."""
        self.api.changed = lambda what, resource, document: note(
            resource, what, document, store=self.store, queue=self.queue
        )

    async def settle(self) -> None:
        """Work until nothing is ready; that there is always more is a fault."""
        for _ in range(500):
            key = self.queue.take()
            if key is None:
                return
            try:
                await self.worker.attend(key)
            finally:
                self.queue.done(key)
        raise AssertionError("it goes round in circles")


def world(**facts: Any) -> MemoryApi:
    """Return an API server with placement, VM and host."""
    api = MemoryApi()
    api.put(PLACEMENTS, placement_document(**facts))
    api.put(VMIS, vmi_document())
    api.put(HOSTS, host_document())
    return api


def run(steps: Callable[[], Any]) -> None:
    asyncio.run(steps())


def orders(api: MemoryApi) -> list[Document]:
    return [document for key, document in sorted(api.objects.items()) if key[0] == "numamigrations"]


def reason(api: MemoryApi, name: str = "db") -> str:
    conditions = api.objects["numaplacements", "prod", name]["status"].get("conditions", [])
    [found] = {each["reason"] for each in conditions} or {""}
    return str(found)


async def started(api: MemoryApi, **facts: Any) -> Controller:
    controller = Controller(api, **facts)
    controller.listen()
    assert await controller.sweep.once()
    await controller.settle()
    return controller


def test_an_order_is_given_before_status_says_so() -> None:
    async def steps() -> None:
        api = world()
        await started(api)
        [order] = orders(api)
        assert [each for each in api.calls if each[0] != "list"] == [
            ("apply", order["metadata"]["name"]),
            ("apply status", "db"),
        ]
        assert reason(api) == "Ordered"

    run(steps)


def test_nothing_is_written_when_nothing_has_changed() -> None:
    async def steps() -> None:
        api = world()
        controller = await started(api)
        api.calls.clear()
        for _ in range(3):
            await controller.sweep.once()
            await controller.settle()
            controller.queue.add(KEY)
            await controller.settle()
        assert {verb for verb, _ in api.calls} == {"list"}

    run(steps)


def test_what_was_written_is_known_before_any_event_tells_of_it() -> None:
    async def steps() -> None:
        api = world()
        controller = Controller(api)
        await controller.sweep.once()
        await controller.settle()
        api.calls.clear()
        controller.queue.add(KEY)
        await controller.settle()
        assert api.calls == []
        status = api.objects["numaplacements", *KEY]["status"]
        held = api.put(PLACEMENTS, placement_document(suspend=True, generation=2, status=status))
        note(PLACEMENTS, "MODIFIED", held, store=controller.store, queue=controller.queue)
        for _ in range(2):
            await controller.settle()
            controller.queue.add(KEY)
        assert [verb for verb, _ in api.calls] == ["delete", "apply status"]

    run(steps)


def test_an_unfinished_order_is_taken_back_before_the_next_is_given() -> None:
    async def steps() -> None:
        api = world()
        controller = await started(api)
        [first] = orders(api)
        api.calls.clear()
        api.put(
            PLACEMENTS,
            placement_document(numaNode=1, generation=2, status=api.objects["numaplacements", *KEY]["status"]),
        )
        await controller.settle()
        [second] = orders(api)
        assert api.calls == [
            ("delete", first["metadata"]["name"]),
            ("apply", second["metadata"]["name"]),
            ("apply status", "db"),
        ]

    run(steps)


@pytest.mark.parametrize("error", [NotFound("gone", status=404), Conflict("another", status=409)])
def test_an_order_that_is_gone_already_is_no_failure(error: Exception) -> None:
    async def steps() -> None:
        api = world()
        controller = await started(api)
        api.failures = [error]
        api.put(PLACEMENTS, placement_document(numaNode=1, generation=2))
        await controller.settle()
        assert reason(api) == "Ordered"
        assert orders(api)[-1]["spec"]["target"] == {"numaNode": 1} or orders(api)[0]["spec"]["target"] == {
            "numaNode": 1
        }

    run(steps)


@pytest.mark.parametrize("error", [NotFound("gone", status=404), Conflict("another", status=409)])
def test_a_placement_that_is_gone_or_replaced_is_no_failure(error: Exception) -> None:
    async def steps() -> None:
        api = world()
        controller = Controller(api)
        await controller.sweep.once()
        api.failures = [None, error]
        await controller.settle()
        assert controller.queue.retry(KEY) == 1, "a first failure"

    run(steps)


@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize("error", [Unavailable("cannot: no answer"), TooManyRequests("slow down", retry_after=9)])
def test_a_failure_is_tried_again_later_and_ends_in_the_same(call: int, error: Any, caplog: Any) -> None:
    async def steps() -> None:
        api = world()
        controller = Controller(api)
        controller.listen()
        await controller.sweep.once()
        api.failures = [*[None] * call, error]
        await controller.settle()
        assert str(error) in caplog.text
        # The order itself, once it is stored, is an event that leads here again at once.
        assert reason(api) == ("" if call == 0 else "Ordered")
        controller.seconds += 0.9
        await controller.settle()
        assert reason(api) == ("" if call == 0 else "Ordered")
        controller.seconds += 8.1
        await controller.settle()
        assert reason(api) == "Ordered"
        assert len(orders(api)) == 1

    run(steps)


def test_failures_come_ever_later() -> None:
    async def steps() -> None:
        api = world()
        controller = Controller(api)
        await controller.sweep.once()
        waits = []
        for _ in range(5):
            api.failures = [Unavailable("no answer")]
            await controller.settle()
            before = controller.seconds
            while not len(controller.queue):
                controller.seconds += 0.5
            waits.append(controller.seconds - before)
        assert waits == [1, 2, 4, 8, 16]

    run(steps)


@pytest.mark.parametrize("error", [Forbidden("may not create", status=403), Invalid("spec: immutable", status=422)])
def test_an_order_that_is_not_accepted_is_told(error: Exception) -> None:
    async def steps() -> None:
        api = world()
        controller = Controller(api)
        controller.listen()
        await controller.sweep.once()
        api.failures = [error]
        await controller.settle()
        assert reason(api) == "OrderNotAccepted"
        status = api.objects["numaplacements", *KEY]["status"]
        assert all(str(error) in each["message"] for each in status["conditions"])
        [row] = status["vms"]
        assert (row["state"], row["reason"], row["order"]) == ("Waiting", "OrderNotAccepted", "")
        controller.seconds += 1
        await controller.settle()
        assert reason(api) == "Ordered"

    run(steps)


def test_an_order_that_is_not_accepted_holds_up_no_other_vm() -> None:
    async def steps() -> None:
        api = world(vm={})
        api.put(VMIS, vmi_document("another"))
        controller = Controller(api)
        controller.listen()
        await controller.sweep.once()
        api.failures = [Forbidden("may not", status=403)]
        await controller.settle()
        assert [order["spec"]["vm"]["name"] for order in orders(api)] == ["db"]
        rows = {row["name"]: row["reason"] for row in api.objects["numaplacements", *KEY]["status"]["vms"]}
        assert rows == {"another": "OrderNotAccepted", "db": "Ordered"}

    run(steps)


def test_an_order_that_was_stored_otherwise_than_given_is_taken_back_at_once() -> None:
    async def steps() -> None:
        api = world(dryRun=True)
        api.drop = "dryRun"
        controller = await started(api)
        assert orders(api) == []
        assert reason(api) == "OrderNotAccepted"
        for seconds in (1, 2, 4, 8):
            api.calls.clear()
            controller.seconds += seconds - 0.1
            controller.queue.add(KEY)
            await controller.settle()
            assert api.calls == []
            controller.seconds += 0.1
            await controller.settle()
            assert [verb for verb, _ in api.calls] == ["apply", "delete"]
        api.drop = ""
        controller.seconds += 16
        await controller.settle()
        assert len(orders(api)) == 1
        assert reason(api) == "Ordered"
        assert controller.queue.retry(KEY) == 1, "a first failure"

    run(steps)


def test_a_fault_of_our_own_stops_no_other_placement(caplog: Any, monkeypatch: Any) -> None:
    async def steps() -> None:
        api = world()
        api.put(PLACEMENTS, placement_document("another", vm="another"))
        controller = Controller(api)
        controller.listen()
        await controller.sweep.once()
        real = controller.store.seen_orders

        def broken(uid: str) -> Any:
            if uid == "uid-of-db":
                raise ZeroDivisionError("oops")
            return real(uid)

        monkeypatch.setattr(controller.store, "seen_orders", broken)
        await controller.settle()
        assert reason(api) == ""
        assert reason(api, "another") == "VmNotFound"
        assert "fault of the operator" in caplog.text

    run(steps)


def test_progress_is_written_at_most_every_two_seconds_and_a_verdict_at_once() -> None:
    async def steps() -> None:
        api = world()
        controller = await started(api)
        [order] = orders(api)

        async def report(**status: Any) -> int:
            api.calls.clear()
            api.put(MIGRATIONS, order | {"status": taken_up(**status)})
            await controller.settle()
            return len(api.calls)

        assert await report(progress={"stage": "Move", "bytesTotal": 100, "bytesDone": 1}) == 1
        controller.seconds += 1
        assert await report(progress={"stage": "Move", "bytesTotal": 100, "bytesDone": 2}) == 0
        assert await report(progress={"stage": "Move", "bytesTotal": 100, "bytesDone": 3}) == 0
        controller.seconds += 1
        api.calls.clear()
        await controller.settle()
        assert len(api.calls) == 1
        assert "3%" in api.objects["numaplacements", *KEY]["status"]["conditions"][0]["message"]
        assert await report(**ended("Placed")) == 1
        assert reason(api) == "Placed"

    run(steps)


def test_a_status_that_somebody_has_changed_is_set_right_by_the_sweep() -> None:
    async def steps() -> None:
        api = world()
        controller = await started(api)
        before = api.objects["numaplacements", *KEY]["status"]
        api.objects["numaplacements", *KEY]["status"] = {"observedGeneration": 7}
        api.objects["numaplacements", *KEY]["metadata"]["resourceVersion"] = "999"
        await controller.sweep.once()
        await controller.settle()
        assert api.objects["numaplacements", *KEY]["status"] == before

    run(steps)


def test_an_event_that_was_missed_is_found_by_the_sweep() -> None:
    async def steps() -> None:
        api = world()
        controller = await started(api)
        [order] = orders(api)
        api.changed = lambda *_: None
        await api.delete(VMIS, "db", namespace="prod")
        await controller.settle()
        assert reason(api) == "Ordered"
        await controller.sweep.once()
        await controller.settle()
        assert reason(api) == "VmNotFound"
        assert order["metadata"]["name"] not in {each["metadata"]["name"] for each in orders(api)}

    run(steps)


def test_what_was_decided_of_an_old_placement_is_not_said_of_a_new_one_of_its_name() -> None:
    async def steps() -> None:
        api = world()
        controller = Controller(api)
        await controller.sweep.once()
        api.put(PLACEMENTS, placement_document(uid="made anew", vm="another"))
        await controller.settle()
        assert reason(api) == ""
        await controller.sweep.once()
        controller.seconds += 1
        await controller.settle()
        assert reason(api) == "VmNotFound"

    run(steps)


def test_a_placement_that_is_gone_is_forgotten() -> None:
    async def steps() -> None:
        api = world()
        controller = await started(api)
        await api.delete(PLACEMENTS, "db", namespace="prod")
        api.calls.clear()
        await controller.settle()
        assert api.calls == []

    run(steps)


# The sweep


def test_before_everything_was_listed_nothing_is_decided() -> None:
    async def steps() -> None:
        api = world()
        api.failures = [None, Unavailable("no answer"), None, None]
        controller = Controller(api)
        assert not await controller.sweep.once()
        api.failures = [None, None, Forbidden("may not list", status=403), None]
        assert not await controller.sweep.once()
        assert await controller.sweep.once()

    run(steps)


def test_the_first_list_is_tried_until_it_comes() -> None:
    async def steps() -> None:
        api = world()
        controller = Controller(api)
        controller.sweep = Sweep(
            api=api,
            store=controller.store,
            queue=controller.queue,
            interval=300,
            backoff=Backoff(first=0.001, most=0.001),
            clock=lambda: 0.0,
        )
        api.failures = [Unavailable("no answer")] * 9
        async with asyncio.timeout(10):
            await controller.sweep.first()
        assert len(controller.store.placements) == 1

    run(steps)


def test_a_kind_that_is_not_installed_has_no_objects(caplog: Any) -> None:
    caplog.set_level(logging.INFO)

    async def steps() -> None:
        api = world()
        controller = await started(api)
        assert reason(api) == "Ordered"
        api.failures = [None, None, None, NotFound("no such kind", status=404)]
        assert await controller.sweep.once()
        await controller.settle()
        assert reason(api) == "VmNotFound"
        assert "virtualmachineinstances.kubevirt.io" in caplog.text

    run(steps)


def test_what_cannot_be_listed_stays_as_it_was_seen() -> None:
    async def steps() -> None:
        api = world()
        controller = await started(api)
        api.failures = [Unavailable("no answer")] * 4
        assert not await controller.sweep.once()
        assert len(controller.store.placements) == 1
        assert len(controller.store.vmis) == 1

    run(steps)


def test_what_is_stuck_is_told_to_the_liveness_probe() -> None:
    controller = Controller(MemoryApi())
    assert complaint(controller.sweep, controller.queue, interval=300) == ""
    controller.queue.add(KEY)
    controller.seconds += STUCK + 1
    assert "waited" in complaint(controller.sweep, controller.queue, interval=300)
    controller.queue.take()
    assert complaint(controller.sweep, controller.queue, interval=300) == ""
    controller.seconds += 600
    assert "listed" in complaint(controller.sweep, controller.queue, interval=300)


# Starting again anywhere


async def _story(api: MemoryApi, controller: Controller, restarted: Callable[[], Controller]) -> Controller:
    """Let the world go its way: order, failure, second order, placed; then another NUMA node, and placed again."""

    async def go(controller: Controller) -> Controller:
        while True:
            try:
                await controller.sweep.once()
                await controller.settle()
            except Killed:
                controller = restarted()
                continue
            return controller

    async def agent(controller: Controller, status: Document, *, attempt: int, numa_node: int) -> Controller:
        [order] = [
            each
            for each in orders(api)
            if each["spec"]["attempt"] == attempt
            and each["spec"]["target"] == {"numaNode": numa_node}
            and "result" not in each["status"]
        ]
        api.put(MIGRATIONS, order | {"status": status})
        return await go(controller)

    controller = await go(controller)
    failed = ended("Residue", rows=[residue()], seconds_ago=-1)
    controller = await agent(controller, failed, attempt=1, numa_node=0)
    controller.seconds += 100
    controller = await go(controller)
    controller = await agent(controller, taken_up(), attempt=2, numa_node=0)
    controller = await agent(controller, ended("Placed"), attempt=2, numa_node=0)
    known = api.objects["numaplacements", *KEY]
    api.put(PLACEMENTS, placement_document(numaNode=3, generation=2, status=known["status"]))
    controller = await go(controller)
    return await agent(controller, ended("Placed"), attempt=1, numa_node=3)


def _end(api: MemoryApi) -> dict[Name, Document]:
    """Return all objects as they are, but for versions, UIDs and times, which depend on how often was written."""
    end = {}
    for key, document in api.objects.items():
        status = {**document["status"]}
        if "conditions" in status:
            status["conditions"] = [
                {name: value for name, value in each.items() if name != "lastTransitionTime"}
                for each in status["conditions"]
            ]
        end[key] = {"spec": document.get("spec", {}), "status": status}
    return end


async def _play(*, before: int = -1, after: int = -1) -> tuple[MemoryApi, int]:
    api = world()
    now = 0.0

    def begin() -> Controller:
        made = Controller(api, seconds=now)
        made.listen()
        return made

    def restarted() -> Controller:
        made = begin()
        made.seconds = 100.0
        return made

    api.failures = [None] * before + [Killed()] if before >= 0 else []
    api.after = [None] * after + [Killed()] if after >= 0 else []
    await _story(api, begin(), restarted)
    return api, len(api.calls)


def test_a_controller_killed_at_any_call_ends_in_the_same() -> None:
    async def steps() -> None:
        undisturbed, calls = await _play()
        expected = _end(undisturbed)
        assert reason(undisturbed) == "Placed"
        assert len(orders(undisturbed)) == 3
        assert calls > 20
        for number in range(calls):
            killed, _ = await _play(before=number)
            assert _end(killed) == expected, f"killed before call {number}"
        writes = len([verb for verb, _ in undisturbed.calls if verb != "list"])
        for number in range(writes):
            killed, _ = await _play(after=number)
            assert _end(killed) == expected, f"killed after write {number}"

    run(steps)


def test_two_controllers_at_once_make_no_second_order() -> None:
    async def steps() -> None:
        api = world()
        one, two = Controller(api), Controller(api)
        for each in (one, two):
            await each.sweep.once()
        # Neither has heard of what the other does.
        await one.settle()
        await two.settle()
        assert len(orders(api)) == 1
        for each in (one, two):
            await each.sweep.once()
            api.calls.clear()
            await each.settle()
            assert api.calls == []

    run(steps)


# Whether a status says anything new


def status(**facts: Any) -> NumaPlacementStatus:
    condition = {
        "type": "Ready",
        "status": "False",
        "reason": "Moving",
        "message": "1%",
        "lastTransitionTime": "2026-11-23T12:00:00Z",
    }
    row = {"name": "db", "state": "Moving", "reason": "Moving", "message": "1%", "order": "o"}
    return NumaPlacementStatus.model_validate(
        {"observedGeneration": 1, "conditions": [condition], "vms": [row]} | facts
    )


def test_another_order_of_rows_or_a_condition_of_others_is_nothing_new() -> None:
    base = status()
    foreign = base.conditions[0].model_copy(update={"type": "Approved"})
    assert same_status(replace_conditions(base, (foreign, *base.conditions)), base)
    assert not same_status(replace_conditions(base, (foreign,)), base)
    rows = (base.vms[0], base.vms[0].model_copy(update={"name": "web"}))
    one, other = base.model_copy(update={"vms": rows}), base.model_copy(update={"vms": rows[::-1]})
    assert same_status(one, other)
    assert not same_status(one, base)


def replace_conditions(base: NumaPlacementStatus, conditions: tuple[Any, ...]) -> NumaPlacementStatus:
    return base.model_copy(update={"conditions": conditions})


def test_fractions_of_seconds_are_nothing_new() -> None:
    base = status()
    finer = base.conditions[0].model_copy(
        update={"last_transition_time": base.conditions[0].last_transition_time + datetime.timedelta(milliseconds=7)}
    )
    assert same_status(base, replace_conditions(base, (finer,)))


@pytest.mark.parametrize(
    ("facts", "progress"),
    [
        ({}, True),
        ({"vms": [{"name": "db", "state": "Moving", "reason": "Moving", "message": "2%", "order": "o"}]}, True),
        ({"vms": [{"name": "db", "state": "Placed", "reason": "Moving", "message": "1%", "order": "o"}]}, False),
        ({"vms": [{"name": "db", "state": "Moving", "reason": "Moving", "message": "1%", "order": "p"}]}, False),
        ({"vms": []}, False),
        ({"observedGeneration": 2}, False),
        ({"summary": {"placed": 1}}, False),
        ({"conditions": []}, False),
    ],
)
def test_what_is_mere_progress(facts: dict[str, Any], progress: bool) -> None:
    assert only_progress(status(), status(**facts)) is progress


def test_stored_and_read_again_a_status_is_the_same() -> None:
    assert same_status(NumaPlacementStatus.model_validate(to_document(status())), status())
