# SPDX-License-Identifier: Apache-2.0
"""The agent's way with orders, against a real API server. In place of the engine stands a move that ends when the test
says so: what the engine really does is tested where there is a kernel with NUMA nodes."""

import asyncio
import contextlib
import datetime
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from numaplacement.agent.agent import Agent
from numaplacement.agent.orders import read_order
from numaplacement.agent.settings import Settings
from numaplacement.agent.status_writer import StatusWriter
from numaplacement.agent.support import Refusal
from numaplacement.agent.verdict import Moment, judged, under_way
from numaplacement.api.resources import MIGRATIONS
from numaplacement.apiserver.client import Client
from numaplacement.apiserver.connection import connect
from numaplacement.apiserver.errors import Invalid, NotFound
from numaplacement.engine.errors import EngineError
from numaplacement.engine.verdict import Outcome, Progress, Stage, Verdict
from tests.cluster.breakable import BreakableWay
from tests.cluster.orders import PATIENCE, new_host, order, ready, result_of, status_of, until

INTERVAL = 0.2


class Moves:
    """Stands in for the engine: each order is under way until it is ended here or cancelled by the agent."""

    def __init__(self, *, when_cancelled=Outcome.CANCELLED):
        self.begun = []
        self._ends = {}
        self._watchers = {}
        self._when_cancelled = when_cancelled

    def __call__(self, order, watcher):
        self._watchers[order.name] = watcher
        self.begun.append(order.name)
        deadline = time.monotonic() + PATIENCE
        while order.name not in self._ends and not watcher.cancelled():
            assert time.monotonic() < deadline, f"nobody ended {order.name}"
            time.sleep(0.005)  # as long as a kernel call may take
        if watcher.cancelled():
            return Verdict(outcome=self._when_cancelled, message="cancelled")
        end = self._ends[order.name]
        if isinstance(end, Exception):
            raise end
        return end

    def progress(self, name, **fields):
        self._watchers[name].progressed(Progress(stage=Stage.MOVE, **fields))

    def end(self, name, how=None):
        self._ends[name] = how or Verdict(outcome=Outcome.PLACED, message="all of it")

    def cancelled(self, name):
        return self._watchers[name].cancelled()


class Unasked:
    """Stands in for the reporter: NumaHosts are not what is tested here."""

    async def run(self):
        await asyncio.Event().wait()

    def look_now(self, *, pod_uid):
        self.looked_at = pod_uid


@contextlib.asynccontextmanager
async def agent_of(client, host, moves, look=lambda _order, _watcher, verdict: verdict):
    """Run an agent of `host`; it has stopped in order afterwards."""
    stop = asyncio.Event()
    with ThreadPoolExecutor(max_workers=1) as engine, ThreadPoolExecutor(max_workers=1) as looks:
        agent = Agent(
            settings=Settings(node_name=host, progress_interval=INTERVAL),
            client=client,
            reporter=Unasked(),
            carry_out=moves,
            engine=engine,
            look=look,
            looks=looks,
            stop=stop,
        )
        running = asyncio.create_task(agent.run())
        try:
            yield
        finally:
            stop.set()
            async with asyncio.timeout(PATIENCE):
                await running
                await client.finish()


def play(control_plane, story):
    """Run `story` with a client, a host of its own and moves that end when told."""

    async def with_client():
        async with connect({"KUBECONFIG": str(control_plane.admin_kubeconfig)}) as client:
            await story(client, new_host(), Moves())

    asyncio.run(with_client())


@pytest.mark.parametrize("stayed", [True, False])
def test_whether_the_memory_stays_is_told_after_the_verdict(control_plane, namespace, stayed):
    async def story(client, host, moves):
        await client.create(MIGRATIONS, order(namespace, "one", host=host))
        seen = []

        def look(order_seen, _watcher, verdict):
            seen.append(order_seen.name)
            return replace(verdict, stayed=stayed)

        async with agent_of(client, host, moves, look):
            await until(lambda: moves.begun == ["one"], what="taken up")
            moves.end("one")

            async def told():
                return "stayed" in await status_of(client, namespace, "one")

            await until(told, what="told whether it stayed")
            status = await status_of(client, namespace, "one")
            assert (status["stayed"], status["result"], seen) == (stayed, "Placed", ["one"])

    play(control_plane, story)


def test_progress_and_then_the_verdict(control_plane, namespace):
    async def story(client, host, moves):
        await client.create(MIGRATIONS, order(namespace, "one", host=host))
        async with agent_of(client, host, moves):
            await until(lambda: moves.begun == ["one"], what="taken up")
            status = await status_of(client, namespace, "one")
            assert (ready(status)["reason"], status["progress"]["stage"]) == ("Moving", "Survey")
            assert status["observedGeneration"] == 1
            moves.progress("one", bytes_done=5, bytes_total=9, pass_number=1)

            async def told():
                return (await status_of(client, namespace, "one"))["progress"].get("bytesDone") == 5

            await until(told, what="progress")
            moves.end("one")
            status = await result_of(client, namespace, "one")
        assert (status["result"], ready(status)["status"]) == ("Placed", "True")
        assert "progress" not in status

    play(control_plane, story)


def test_progress_is_written_no_oftener_than_asked(control_plane, namespace):
    async def story(client, host, moves):
        made = await client.create(MIGRATIONS, order(namespace, "one", host=host))
        seen, now = [], asyncio.get_running_loop().time

        async def watch():
            version = made["metadata"]["resourceVersion"]
            async for event in client.watch(MIGRATIONS, resource_version=version, namespace=namespace):
                progress = event.document.get("status", {}).get("progress", {})
                if progress.get("stage") == "Move":
                    seen.append(progress["bytesDone"])

        watching = asyncio.create_task(watch())
        async with agent_of(client, host, moves):
            await until(lambda: moves.begun, what="taken up")
            began, count = now(), 0
            while len(seen) < 5:
                moves.progress("one", bytes_done=(count := count + 1))
                await asyncio.sleep(INTERVAL / 10)
                assert now() < began + PATIENCE
            intervals = (now() - began) / INTERVAL
            moves.end("one")
            await result_of(client, namespace, "one")
        watching.cancel()
        assert intervals > 4
        assert count > 20

    play(control_plane, story)


def test_one_after_the_other_by_priority(control_plane, namespace):
    async def story(client, host, moves):
        await client.create(MIGRATIONS, order(namespace, "first", host=host))
        async with agent_of(client, host, moves):
            await until(lambda: moves.begun, what="taken up")
            for name, priority in (("low", -1), ("plain", 0), ("high", 9)):
                await client.create(MIGRATIONS, order(namespace, name, host=host, priority=priority))
            for name in ("low", "plain", "high"):

                async def waits(name=name):
                    return ready(await status_of(client, namespace, name))["reason"] == "Queued"

                await until(waits, what=f"{name} queued")
            assert (await status_of(client, namespace, "low"))["progress"]["stage"] == "Queued"
            for name in ("first", "high", "plain", "low"):
                await until(lambda name=name: moves.begun[-1] == name, what=f"{name} begun")
                moves.end(name)
                await result_of(client, namespace, name)
        assert moves.begun == ["first", "high", "plain", "low"]

    play(control_plane, story)


def test_orders_found_at_the_start_know_that_they_wait(control_plane, namespace):
    async def story(client, host, moves):
        for name in ("a", "b", "c"):
            await client.create(MIGRATIONS, order(namespace, name, host=host))
        async with agent_of(client, host, moves):
            for name in ("b", "c"):

                async def waits(name=name):
                    return ready(await status_of(client, namespace, name))["reason"] == "Queued"

                await until(waits, what=f"{name} queued")
        assert moves.begun == ["a"]

    play(control_plane, story)


def test_an_order_deleted_while_it_runs_is_cancelled(control_plane, namespace):
    async def story(client, host, moves):
        for name in ("one", "two"):
            await client.create(MIGRATIONS, order(namespace, name, host=host))
        async with agent_of(client, host, moves):
            await until(lambda: moves.begun == ["one"], what="taken up")
            await client.delete(MIGRATIONS, "one", namespace=namespace)
            await until(lambda: moves.cancelled("one"), what="cancelled")
            await until(lambda: moves.begun == ["one", "two"], what="the next one")
            moves.end("two")
            await result_of(client, namespace, "two")
            try:
                await client.get(MIGRATIONS, "one", namespace=namespace)
            except NotFound:
                return
            raise AssertionError("it is there again")

    play(control_plane, story)


def test_an_order_deleted_while_it_waits_is_never_begun(control_plane, namespace):
    async def story(client, host, moves):
        for name in ("a", "b", "c"):
            await client.create(MIGRATIONS, order(namespace, name, host=host))
        async with agent_of(client, host, moves):
            await until(lambda: moves.begun == ["a"], what="taken up")
            await client.delete(MIGRATIONS, "b", namespace=namespace)
            moves.end("a")
            await until(lambda: moves.begun[-1] == "c", what="the last one")
        assert moves.begun == ["a", "c"]

    play(control_plane, story)


def test_another_order_of_the_same_name_gets_a_verdict_of_its_own(control_plane, namespace):
    async def story(client, host, moves):
        await client.create(MIGRATIONS, order(namespace, "one", host=host))
        async with agent_of(client, host, moves):
            await until(lambda: moves.begun == ["one"], what="taken up")
            await client.delete(MIGRATIONS, "one", namespace=namespace)
            await client.create(MIGRATIONS, order(namespace, "one", host=host, dryRun=True))
            await until(lambda: moves.begun == ["one", "one"], what="the second one")
            assert "result" not in await status_of(client, namespace, "one")
            moves.end("one", Verdict(outcome=Outcome.PLANNED, message="would move"))
            assert (await result_of(client, namespace, "one"))["result"] == "Planned"

    play(control_plane, story)


def test_a_write_that_comes_late_changes_nothing(control_plane, namespace):
    async def story(client, host, _):
        early = read_order(await client.create(MIGRATIONS, order(namespace, "one", host=host)))
        writer = StatusWriter(client, stop=asyncio.Event())
        moment = Moment(order=early, started=early.created, now=early.created)
        assert await writer.write(early, judged(moment, Verdict(outcome=Outcome.PLACED, message="all of it")))
        assert await writer.offer(early, under_way(moment, Progress(stage=Stage.MOVE))) is None
        assert await writer.write(early, under_way(moment, Progress(stage=Stage.MOVE))) is None
        assert (await status_of(client, namespace, "one"))["result"] == "Placed"

    play(control_plane, story)


def test_a_verdict_does_not_reach_another_order_of_the_same_name(control_plane, namespace):
    async def story(client, host, _):
        first = read_order(await client.create(MIGRATIONS, order(namespace, "one", host=host)))
        await client.delete(MIGRATIONS, "one", namespace=namespace)
        await client.create(MIGRATIONS, order(namespace, "one", host=host))
        writer = StatusWriter(client, stop=asyncio.Event())
        moment = Moment(order=first, started=first.created, now=first.created)
        assert await writer.write(first, judged(moment, Verdict(outcome=Outcome.PLACED, message="all of it"))) is None
        assert await status_of(client, namespace, "one") == {"observedGeneration": -1}

    play(control_plane, story)


def test_an_order_somebody_else_touched_gets_its_verdict_all_the_same(control_plane, namespace):
    async def story(client, host, _):
        early = read_order(await client.create(MIGRATIONS, order(namespace, "one", host=host)))
        labels = {"metadata": {"namespace": namespace, "name": "one", "labels": {"touched": "yes"}}}
        await client.apply(MIGRATIONS, labels, manager="somebody")
        writer = StatusWriter(client, stop=asyncio.Event())
        moment = Moment(order=early, started=early.created, now=early.created)
        assert await writer.write(early, judged(moment, Verdict(outcome=Outcome.PLACED, message="all of it")))
        assert (await status_of(client, namespace, "one"))["result"] == "Placed"

    play(control_plane, story)


def test_whether_memory_stayed_is_added_to_a_verdict_that_somebody_touched(control_plane, namespace):
    async def story(client, host, _):
        early = read_order(await client.create(MIGRATIONS, order(namespace, "one", host=host)))
        writer = StatusWriter(client, stop=asyncio.Event())
        moment = Moment(order=early, started=early.created, now=early.created)
        placed = Verdict(outcome=Outcome.PLACED, message="all of it")
        written = await writer.write(early, judged(moment, placed))
        labels = {"metadata": {"namespace": namespace, "name": "one", "labels": {"touched": "yes"}}}
        await client.apply(MIGRATIONS, labels, manager="somebody")
        assert await writer.write(written, judged(moment, replace(placed, stayed=True)), again=True)
        assert (await status_of(client, namespace, "one"))["stayed"] is True

    play(control_plane, story)


def test_a_stopped_agent_leaves_its_order_open_and_the_next_one_takes_it_up(control_plane, namespace):
    async def story(client, host, moves):
        for name in ("done", "open"):
            await client.create(MIGRATIONS, order(namespace, name, host=host))
        async with agent_of(client, host, moves):
            moves.end("done")
            await result_of(client, namespace, "done")
            await until(lambda: moves.begun == ["done", "open"], what="taken up")
        assert moves.cancelled("open")
        left = await status_of(client, namespace, "open")
        assert "result" not in left
        assert ready(left)["reason"] == "Moving"
        begun = datetime.datetime.fromisoformat(left["startTime"])
        a_second = datetime.timedelta(seconds=1)
        await until(lambda: datetime.datetime.now(datetime.UTC) > begun + a_second, what="another second")
        again = Moves()
        async with agent_of(client, host, again):
            await until(lambda: again.begun, what="taken up again")
            again.end("open")
            status = await result_of(client, namespace, "open")
        assert again.begun == ["open"]
        assert status["result"] == "Placed"
        assert status["startTime"] == left["startTime"]

    play(control_plane, story)


def test_a_verdict_reached_at_the_stop_is_still_written(control_plane, namespace):
    async def story(client, host, _):
        moves = Moves(when_cancelled=Outcome.PROCESS_GONE)
        await client.create(MIGRATIONS, order(namespace, "one", host=host))
        async with agent_of(client, host, moves):
            await until(lambda: moves.begun, what="taken up")
        assert (await status_of(client, namespace, "one"))["result"] == "VmGone"

    play(control_plane, story)


def test_the_api_server_is_away_while_memory_moves(control_plane, namespace, tmp_path):
    async def story(client, host, moves):
        await client.create(MIGRATIONS, order(namespace, "one", host=host))
        async with contextlib.AsyncExitStack() as stack:
            way = await stack.enter_async_context(BreakableWay.to(control_plane.port))
            kubeconfig = str(way.kubeconfig(control_plane.admin_kubeconfig, tmp_path))
            through = await stack.enter_async_context(connect({"KUBECONFIG": kubeconfig}))
            await stack.enter_async_context(agent_of(through, host, moves))
            await until(lambda: moves.begun, what="taken up")
            way.cut()
            moves.progress("one", bytes_done=1)
            tried = way.attempts
            moves.end("one")
            await until(lambda: way.attempts >= tried + 4, what="attempts to write")
            assert "result" not in await status_of(client, namespace, "one")
            assert not moves.cancelled("one")
            way.mend()
            assert (await result_of(client, namespace, "one"))["result"] == "Placed"
        assert moves.begun == ["one"]

    play(control_plane, story)


def test_an_order_deleted_while_the_api_server_is_away_is_not_begun(control_plane, namespace, tmp_path):
    async def story(client, host, moves):
        for name in ("a", "b"):
            await client.create(MIGRATIONS, order(namespace, name, host=host))
        async with contextlib.AsyncExitStack() as stack:
            way = await stack.enter_async_context(BreakableWay.to(control_plane.port))
            kubeconfig = str(way.kubeconfig(control_plane.admin_kubeconfig, tmp_path))
            through = await stack.enter_async_context(connect({"KUBECONFIG": kubeconfig}))
            await stack.enter_async_context(agent_of(through, host, moves))
            await until(lambda: moves.begun == ["a"], what="taken up")
            way.cut()
            await client.delete(MIGRATIONS, "b", namespace=namespace)
            await client.create(MIGRATIONS, order(namespace, "c", host=host))
            moves.end("a")
            way.mend()
            await until(lambda: moves.begun[-1] == "c", what="the last one")
        assert moves.begun == ["a", "c"]

    play(control_plane, story)


def test_faults_end_in_a_verdict_too(control_plane, namespace):
    faults = {
        "engine": (EngineError("No /proc: mount it."), "EngineFault", "No /proc: mount it."),
        "system": (PermissionError(13, "Permission denied", "/proc"), "EngineFault", "Permission denied"),
        "own": (KeyError("oops"), "AgentFault", "KeyError: 'oops'"),
    }

    async def story(client, host, moves):
        async with agent_of(client, host, moves):
            for name, (error, reason, words) in faults.items():
                await client.create(MIGRATIONS, order(namespace, name, host=host))
                moves.end(name, error)
                status = await result_of(client, namespace, name)
                assert (status["result"], ready(status)["reason"]) == ("Failed", reason)
                assert words in ready(status)["message"]

    play(control_plane, story)


def test_a_refusal_is_a_verdict(control_plane, namespace):
    async def story(client, host, moves):
        await client.create(MIGRATIONS, order(namespace, "one", host=host))
        moves.end("one", Refusal(reason="PodNotFound", seen="No process.", remedy="Look elsewhere.", permanent=True))
        async with agent_of(client, host, moves):
            status = await result_of(client, namespace, "one")
        assert (status["result"], ready(status)["message"]) == ("Refused", "No process. Look elsewhere.")
        assert status["residue"][0]["permanent"]

    play(control_plane, story)


class Fussy(Client):
    """Does not let a verdict of the engine's through, as a server with other CRDs might not."""

    async def apply(self, resource, document, **words):
        if document["status"].get("result") == "Placed":
            raise Invalid("cannot apply status: asked: Invalid value", status=422)
        return await super().apply(resource, document, **words)


def test_a_verdict_the_server_does_not_take_is_not_lost_in_silence(control_plane, namespace):
    async def story(client, host, moves):
        await client.create(MIGRATIONS, order(namespace, "one", host=host))
        moves.end("one")
        async with agent_of(Fussy(client._api), host, moves):
            status = await result_of(client, namespace, "one")
        assert (status["result"], ready(status)["reason"]) == ("Failed", "StatusRejected")
        assert "asked: Invalid value" in ready(status)["message"]

    play(control_plane, story)


def test_orders_of_other_hosts_are_not_touched(control_plane, namespace):
    async def story(client, host, moves):
        await client.create(MIGRATIONS, order(namespace, "theirs", host=new_host()))
        await client.create(MIGRATIONS, order(namespace, "mine", host=host))
        moves.end("mine")
        async with agent_of(client, host, moves):
            await result_of(client, namespace, "mine")
        assert await status_of(client, namespace, "theirs") == {"observedGeneration": -1}
        assert moves.begun == ["mine"]

    play(control_plane, story)


class Unselective(Client):
    """Sees the orders of all hosts, whatever it asks for."""

    async def list(self, resource, **selection):
        return await super().list(resource, **(selection | {"field_selector": ""}))

    def watch(self, resource, **selection):
        return super().watch(resource, **(selection | {"field_selector": ""}))


def test_a_selection_is_not_believed(control_plane, namespace):
    async def story(client, host, moves):
        await client.create(MIGRATIONS, order(namespace, "theirs", host=new_host()))
        await client.create(MIGRATIONS, order(namespace, "mine", host=host))
        moves.end("mine")
        async with agent_of(Unselective(client._api), host, moves):
            await result_of(client, namespace, "mine")
        assert await status_of(client, namespace, "theirs") == {"observedGeneration": -1}
        assert moves.begun == ["mine"]

    play(control_plane, story)
