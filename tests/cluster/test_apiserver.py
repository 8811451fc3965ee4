# SPDX-License-Identifier: Apache-2.0
"""The API server client against a real one: verbs, errors, server-side apply, and a watch that survives."""

import asyncio
import contextlib
import datetime
import json
import types

import pytest
from kubernetes.aio.config import incluster_config

from numaplacement.api.resources import MIGRATIONS, NODES
from numaplacement.apiserver import client as client_module
from numaplacement.apiserver import connection, watching
from numaplacement.apiserver.backoff import Backoff
from numaplacement.apiserver.client import Client, Timeouts
from numaplacement.apiserver.connection import connect
from numaplacement.apiserver.errors import (
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    Unauthorized,
    Unavailable,
)
from tests.cluster.breakable import BreakableWay
from tests.cluster.orders import new_host, order, until
from tests.rig.control_plane import ControlPlane
from tests.rig.ports import free_ports


def connected(kubeconfig):
    return connect({"KUBECONFIG": str(kubeconfig)}, user_agent="numaplacement-test")


@contextlib.asynccontextmanager
async def breakable(control_plane, folder, **timeouts):
    """Yield a way that can be broken, and a client that goes it."""
    async with contextlib.AsyncExitStack() as stack:
        way = await stack.enter_async_context(BreakableWay.to(control_plane.port))
        kubeconfig = way.kubeconfig(control_plane.admin_kubeconfig, folder)
        client = await stack.enter_async_context(connected(kubeconfig))
        yield way, Client(client._api, timeouts=Timeouts(**timeouts))


def run(control_plane, story):
    """Run `story` with a client that may do everything."""

    async def with_client():
        async with connected(control_plane.admin_kubeconfig) as client:
            return await story(client)

    return asyncio.run(with_client())


def test_an_object_from_its_making_to_its_end(control_plane, namespace):
    async def story(client):
        made = await client.create(MIGRATIONS, order(namespace, "one", host="n1"))
        read = await client.get(MIGRATIONS, "one", namespace=namespace)
        everywhere = await client.list(MIGRATIONS, field_selector="metadata.name=one")
        await client.delete(MIGRATIONS, "one", namespace=namespace, uid=made["metadata"]["uid"])
        here = await client.list(MIGRATIONS, namespace=namespace)
        return made, read, everywhere, here

    made, read, everywhere, here = run(control_plane, story)
    assert read == made
    assert made["metadata"]["uid"] in [each["metadata"]["uid"] for each in everywhere.items]
    assert here.items == ()
    assert int(here.resource_version) > int(made["metadata"]["resourceVersion"])


def test_a_long_list_comes_in_pages_and_whole(control_plane, namespace, monkeypatch):
    monkeypatch.setattr(client_module, "PAGE", 2)
    names = [f"order-{number}" for number in range(5)]

    async def story(client):
        for name in names:
            await client.create(MIGRATIONS, order(namespace, name, host="n1"))
        return await client.list(MIGRATIONS, namespace=namespace)

    assert [each["metadata"]["name"] for each in run(control_plane, story).items] == names


def test_selectors(control_plane, namespace):
    async def story(client):
        for name, host in (("a", "n1"), ("b", "n2")):
            document = order(namespace, name, host=host)
            document["metadata"]["labels"] = {"which": name}
            await client.create(MIGRATIONS, document)
        by_field = await client.list(MIGRATIONS, namespace=namespace, field_selector="spec.nodeName=n2")
        by_label = await client.list(MIGRATIONS, namespace=namespace, label_selector="which=a")
        return by_field.items + by_label.items

    assert [each["metadata"]["name"] for each in run(control_plane, story)] == ["b", "a"]


async def _exists_twice(client, namespace):
    for _ in range(2):
        await client.create(MIGRATIONS, order(namespace, "one", host="n1"))


async def _changes_an_order(client, namespace):
    await client.apply(MIGRATIONS, order(namespace, "one", host="n1"), manager="t")
    await client.apply(MIGRATIONS, order(namespace, "one", host="n2"), manager="t")


async def _deletes_another(client, namespace):
    await client.create(MIGRATIONS, order(namespace, "one", host="n1"))
    await client.delete(MIGRATIONS, "one", namespace=namespace, uid="another")


async def _status_of_nothing(client, namespace):
    document = {"metadata": {"namespace": namespace, "name": "none"}, "status": {"result": "Placed"}}
    await client.apply(MIGRATIONS, document, manager="t", subresource="status")


ERRORS = {
    "get nothing": (
        lambda client, namespace: client.get(MIGRATIONS, "none", namespace=namespace),
        NotFound,
        ["get NumaMigration", "/none", "not found"],
    ),
    "get nothing that has no namespace": (
        lambda client, _: client.get(NODES, "none"), NotFound, ['cannot get Node none: nodes "none" not found'],
    ),
    "delete nothing": (
        lambda client, namespace: client.delete(MIGRATIONS, "none", namespace=namespace),
        NotFound,
        ["delete NumaMigration"],
    ),
    "status of nothing": (_status_of_nothing, NotFound, ["apply status of NumaMigration", "/none"]),
    "exists already": (_exists_twice, Conflict, ["create NumaMigration", "already exists"]),
    "another one": (_deletes_another, Conflict, ["UID in the precondition (another)"]),
    "breaks a rule": (_changes_an_order, Invalid, ["apply NumaMigration", "an order never changes"]),
    "breaks the schema": (
        lambda client, namespace: client.create(MIGRATIONS, order(namespace, "one", host="")),
        Invalid,
        ["spec.nodeName"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_what_the_server_refuses(control_plane, namespace, name):
    call, kind, words = ERRORS[name]
    with pytest.raises(kind) as caught:
        run(control_plane, lambda client: call(client, namespace))
    assert type(caught.value) is kind
    for word in words:
        assert word in str(caught.value)


def test_without_the_right(control_plane, namespace):
    async def story():
        async with connected(control_plane.service_account_kubeconfig(namespace, "default")) as client:
            await client.list(MIGRATIONS)

    with pytest.raises(Forbidden, match=r"cannot list numamigrations: .* is forbidden"):
        asyncio.run(story())


def test_with_a_token_nobody_gave(control_plane, namespace, tmp_path):
    config = json.loads(control_plane.service_account_kubeconfig(namespace, "default").read_text())
    config["users"][0]["user"]["token"] = "nonsense"
    (tmp_path / "config").write_text(json.dumps(config))

    async def story():
        async with connected(tmp_path / "config") as client:
            await client.list(MIGRATIONS)

    with pytest.raises(Unauthorized):
        asyncio.run(story())


class TwoMinutesLater(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(minutes=2)


def test_in_a_pod_and_its_token_is_replaced(control_plane, namespace, tmp_path, monkeypatch):
    token, certificate = tmp_path / "token", tmp_path / "ca.crt"
    monkeypatch.setattr(connection, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(connection, "SERVICE_CERT_FILENAME", str(certificate))
    certificate.write_bytes(control_plane.ca_file.read_bytes())
    control_plane.kubectl("create", "serviceaccount", "later", "-n", namespace)

    def give(name):
        token.write_text(control_plane.kubectl("create", "token", name, "-n", namespace).stdout.strip())

    async def story():
        environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(control_plane.port)}
        async with connect(environ) as client:
            for name in ("default", "later"):
                with pytest.raises(Forbidden, match=f'User "system:serviceaccount:{namespace}:{name}"'):
                    await client.list(MIGRATIONS)
                give("later")
                monkeypatch.setattr(
                    incluster_config,
                    "datetime",
                    types.SimpleNamespace(datetime=TwoMinutesLater, timedelta=datetime.timedelta),
                )

    give("default")
    asyncio.run(story())


def test_where_nobody_listens(control_plane, tmp_path):
    config = json.loads(control_plane.admin_kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{free_ports(1)[0]}"
    (tmp_path / "config").write_text(json.dumps(config))

    async def story():
        async with connected(tmp_path / "config") as client:
            await client.get(NODES, "n1")

    with pytest.raises(Unavailable, match=r"cannot get Node n1: .*127\.0\.0\.1"):
        asyncio.run(story())


def test_a_server_that_does_not_answer(control_plane, tmp_path):
    async def story():
        async with breakable(control_plane, tmp_path, call=0.5) as (way, client):
            await client.list(NODES)
            way.fall_silent()
            await client.list(NODES)

    with pytest.raises(Unavailable, match="cannot list nodes: no answer in time"):
        asyncio.run(story())


def condition(kind, *, reason="Why"):
    return {
        "type": kind, "status": "True", "reason": reason, "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip


async def apply_status(client, made, manager, **status):
    metadata = {key: made["metadata"][key] for key in ("namespace", "name")}
    force = status.pop("force", True)
    metadata |= {"resourceVersion": status.pop("version")} if "version" in status else {}
    document = {"metadata": metadata, "status": status}
    return (await client.apply(MIGRATIONS, document, manager=manager, force=force, subresource="status"))["status"]


def test_conditions_of_two_writers_are_merged_by_type(control_plane, namespace):
    async def story(client):
        made = await client.create(MIGRATIONS, order(namespace, "one", host="n1"))
        await apply_status(client, made, "a", conditions=[condition("Ready"), condition("Stalled")], moved=5)
        both = await apply_status(client, made, "b", conditions=[condition("Reconciling")])
        left = await apply_status(client, made, "a", conditions=[condition("Ready", reason="Other")])
        return both, left

    both, left = run(control_plane, story)
    assert {each["type"] for each in both["conditions"]} == {"Ready", "Stalled", "Reconciling"}
    # What a writer leaves out goes, what another wrote stays.
    assert {each["type"]: each["reason"] for each in left["conditions"]} == {"Ready": "Other", "Reconciling": "Why"}
    assert both["moved"] == 5
    assert "moved" not in left


def test_a_field_of_another_is_taken_over_by_force_only(control_plane, namespace):
    async def story(client):
        made = await client.create(MIGRATIONS, order(namespace, "one", host="n1"))
        await apply_status(client, made, "a", moved=1)
        with pytest.raises(Conflict, match="moved"):
            await apply_status(client, made, "b", moved=2, force=False)
        return await apply_status(client, made, "b", moved=2)

    assert run(control_plane, story)["moved"] == 2


def test_a_resource_version_is_of_one_very_order(control_plane, namespace):
    async def story(client):
        first = await client.create(MIGRATIONS, order(namespace, "one", host="n1"))
        await client.delete(MIGRATIONS, "one", namespace=namespace)
        with pytest.raises(NotFound):
            await apply_status(client, first, "a", moved=1)
        second = await client.create(MIGRATIONS, order(namespace, "one", host="n1"))
        with pytest.raises(Conflict, match="modified"):
            await apply_status(client, first, "a", moved=1, version=first["metadata"]["resourceVersion"])
        return await client.get(MIGRATIONS, "one", namespace=namespace), second

    found, second = run(control_plane, story)
    assert found == second


def test_a_write_that_comes_late_is_refused(control_plane, namespace):
    async def story(client):
        made = await client.create(MIGRATIONS, order(namespace, "one", host="n1"))
        await apply_status(client, made, "a", result="Placed")
        with pytest.raises(Conflict, match="modified"):
            await apply_status(client, made, "a", moved=1, version=made["metadata"]["resourceVersion"])
        return await client.get(MIGRATIONS, "one", namespace=namespace)

    assert run(control_plane, story)["status"]["result"] == "Placed"


def test_a_watch_from_long_ago_is_gone(control_plane, namespace):
    async def story(client):
        async for _ in client.watch(MIGRATIONS, resource_version="1", namespace=namespace):
            pass

    with pytest.raises(Gone):
        run(control_plane, story)


class Follower:
    """Follows orders of one host in the background and remembers what it was told."""

    def __init__(self, client, host):
        self._client, self._host = client, host
        self.told = []

    async def __aenter__(self):
        self._task = asyncio.create_task(self._follow())
        await self.until("synced")
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _follow(self):
        quick = Backoff(first=0.05, most=0.2)
        selected = f"spec.nodeName={self._host}"
        events = watching.follow(self._client, MIGRATIONS, field_selector=selected, backoff=quick)
        async with contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, watching.Deleted):
                    self.told.append(f"-{event.name}")
                elif isinstance(event, watching.Synced):
                    self.told.append("synced")
                else:
                    sign = "+" if isinstance(event, watching.Added) else "~"
                    self.told.append(sign + event.document["metadata"]["name"])

    async def until(self, word):
        await until(lambda: self._task.done() or word in self.told, what=f"{word} told")
        if self._task.done():
            await self._task


def test_only_what_is_selected_is_told(control_plane, namespace):
    mine, other = new_host(), new_host()

    async def story(client):
        await client.create(MIGRATIONS, order(namespace, "before", host=mine))
        async with Follower(client, mine) as follower:
            for name, host in (("theirs", other), ("mine", mine)):
                await client.create(MIGRATIONS, order(namespace, name, host=host))
            made = await client.get(MIGRATIONS, "mine", namespace=namespace)
            await follower.until("+mine")
            await apply_status(client, made, "a", moved=1)
            await follower.until("~mine")
            for name in ("theirs", "mine"):
                await client.delete(MIGRATIONS, name, namespace=namespace)
            await follower.until("-mine")
            return follower.told

    assert run(control_plane, story) == ["+before", "synced", "+mine", "~mine", "-mine"]


def test_what_vanishes_while_the_way_is_cut_is_told(control_plane, namespace, tmp_path):
    host = new_host()

    async def story(client):
        for name in ("stays", "goes"):
            await client.create(MIGRATIONS, order(namespace, name, host=host))
        async with breakable(control_plane, tmp_path) as (way, through), Follower(through, host) as follower:
            way.cut()
            tried = way.attempts
            await client.delete(MIGRATIONS, "goes", namespace=namespace)
            await client.create(MIGRATIONS, order(namespace, "comes", host=host))
            await until(lambda: way.attempts >= tried + 3, what="three attempts to come back")
            way.mend()
            await until(lambda: follower.told.count("synced") == 2, what="all listed again")
            return follower.told

    told = run(control_plane, story)
    # It was listed again: the deletion came out of the difference.
    assert told == ["+goes", "+stays", "synced", "-goes", "+comes", "synced"]


def test_a_stream_that_falls_silent_is_left(control_plane, namespace, tmp_path):
    host = new_host()

    async def story(client):
        async with (
            breakable(control_plane, tmp_path, silence=1.0) as (way, through),
            Follower(through, host) as follower,
        ):
            way.fall_silent()
            await client.create(MIGRATIONS, order(namespace, "one", host=host))
            await follower.until("+one")
            return follower.told

    assert run(control_plane, story) == ["synced", "+one"]


class CountingClient(Client):
    """Counts the streams it opened."""

    streams = 0

    def watch(self, *words, **selection):
        self.streams += 1
        return super().watch(*words, **selection)


def test_the_server_ends_streams_and_they_go_on(control_plane, namespace):
    host = new_host()

    async def story(client):
        short = CountingClient(client._api, timeouts=Timeouts(watch=1))
        async with Follower(short, host) as follower:
            for number in range(3):
                await client.create(MIGRATIONS, order(namespace, f"o{number}", host=host))
                await follower.until(f"+o{number}")
                await until(lambda before=short.streams: short.streams > before, what="another stream")
            return follower.told

    assert run(control_plane, story) == ["synced", "+o0", "+o1", "+o2"]


def test_a_watch_survives_the_servers_restart():
    with ControlPlane() as own:
        own.install_crds()
        own.create_namespace("prod")

        async def story(client):
            await client.create(MIGRATIONS, order("prod", "goes", host="n1"))
            async with Follower(client, "n1") as follower:
                await asyncio.to_thread(own.stop_apiserver, force=True)
                await asyncio.to_thread(own.start_apiserver)
                await until(lambda: _deleted(client), what="deleted on the new server")
                await follower.until("-goes")
                await client.create(MIGRATIONS, order("prod", "comes", host="n1"))
                await follower.until("+comes")
                return follower.told

        async def _deleted(client):
            try:
                await client.delete(MIGRATIONS, "goes", namespace="prod")
            except NotFound:
                return True
            return False

        told = run(own, story)
    assert told[:2] == ["+goes", "synced"]
    assert told[-1] == "+comes"
    assert told.count("-goes") == 1
