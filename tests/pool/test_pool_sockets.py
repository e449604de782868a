"""WebSockets in front of several models: frames that are for different ones, and what they hold of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from support.asgi_client import AsgiClient
from support.asgi_websocket import websocket
from support.fake_engine import say
from support.pooled_apps import bearer, pooled

from llamafast.api.keys import Keys
from llamafast.api.responses.lanes import MAX_LANES


async def test_two_models_two_keys_stored_responses_and_one_socket(folder: Path, keys: Keys) -> None:
    models = ({"alias": "a", "load": "on_demand"}, {"alias": "b", "load": "on_demand"})
    async with pooled(folder, *models, keys=keys) as pool:
        client = AsgiClient(pool.app)
        headers = [(b"authorization", b"Bearer secret-a")]
        async with websocket(pool.app, headers=headers) as socket:
            first = await socket.answer(model="a", input="hi", store=True)
            second = await socket.answer(model="b", input="ho", store=True)
            # a frame that names no model is for the last one
            third = await socket.answer(input="on", previous_response_id=second["id"], store=True)
            # and what one has said another can continue
            fourth = await socket.answer(model="a", input="on", previous_response_id=third["id"], store=True)
            assert [one["model"] for one in (first, second, third, fourth)] == ["a", "b", "b", "a"]
            assert [len(pool.engines[name].generations) for name in ("a", "b")] == [2, 2]
            assert {one.tenant.name for engine in pool.engines.values() for one in engine.generations} == {"alice"}
            socket.create(model="nobody", input="hi")
            refusal = (await socket.until("error"))[-1]
            assert (refusal["status"], refusal["error"]["code"]) == (404, "model_not_found")
            socket.send("{")
            assert (await socket.until("error"))[-1]["error"]["code"] == "invalid_json"
            # its models may go while nothing runs on it, and come back
            for name in ("a", "b"):
                assert pool.fleet.members[name].busy == 0
                pool.fleet.unload(pool.fleet.members[name])
            while any(member.child for member in pool.fleet.members.values()):
                await asyncio.sleep(0.005)
            # what is kept is read without them
            for one in (first, fourth):
                assert (await client.get(f"/v1/responses/{one['id']}", **bearer("a"))).json["id"] == one["id"]
                assert (await client.get(f"/v1/responses/{one['id']}", **bearer("b"))).status == 404
            items = (await client.get(f"/v1/responses/{fourth['id']}/input_items", **bearer("a"))).json
            assert items["data"][0]["content"][0]["text"] == "on"
            assert (await client.get(f"/v1/responses/{first['id']}", "DELETE", **bearer("b"))).status == 404
            assert (await client.get(f"/v1/responses/{first['id']}", "DELETE", **bearer("a"))).status == 200
            assert not any(member.child for member in pool.fleet.members.values())
            fifth = await socket.answer(model="b", input="on", previous_response_id=fourth["id"])
            assert fifth["previous_response_id"] == fourth["id"]
            assert len(pool.children["b"]) == 2
        over_http = {"model": "a", "input": "x", "previous_response_id": second["id"]}
        assert (await client.post("/v1/responses", over_http, **bearer("b"))).status == 400
        assert (await client.post("/v1/responses", over_http, **bearer("a"))).status == 200


async def test_lanes_of_a_socket_hold_their_models_until_each_is_answered(folder: Path) -> None:
    async with pooled(folder, {"alias": "a", "load": "on_demand"}, {"alias": "b"}) as pool:
        slow = asyncio.Event()
        pool.engines["a"].script = lambda plan: [slow, *say("late")(plan)]
        async with websocket(pool.app) as socket:
            socket.create(model="a", input="hi", stream_id="slow")
            while not pool.engines["a"].generations:
                await asyncio.sleep(0.005)
            pool.engines["a"].script = say("soon")
            socket.create(model="a", input="hi", stream_id="fast")
            assert (await socket.until("response.completed"))[-1]["stream_id"] == "fast"
            assert (await socket.answer(model="b", input="hi", stream_id="other"))["model"] == "b"
            assert pool.fleet.members["a"].busy == 1
            socket.create(model="a", input="hi", stream_id="fast", temperature=-1)
            assert (await socket.until("error"))[-1]["stream_id"] == "fast"
            assert pool.fleet.members["a"].busy == 1
            slow.set()
            assert (await socket.until("response.completed"))[-1]["stream_id"] == "slow"
            assert pool.fleet.members["a"].busy == 0
        assert pool.fleet.members["b"].busy == 0


async def test_a_frame_without_a_model_is_for_that_of_its_lane(folder: Path) -> None:
    async with pooled(folder, {"alias": "a"}, {"alias": "b"}) as pool, websocket(pool.app) as socket:

        async def answered_by(**fields: str) -> str:
            model: str = (await socket.answer(input="hi", **fields))["model"]
            return model

        assert await answered_by(model="a", stream_id="one") == "a"
        assert await answered_by(model="b", stream_id="two") == "b"
        assert await answered_by(stream_id="one") == "a"
        assert await answered_by(stream_id="two") == "b"
        # one that is new is for the last of all, and so are those that are forgotten
        assert await answered_by() == "b"
        assert await answered_by(model="a") == "a"
        assert await answered_by(stream_id="three") == "a"
        for k in range(MAX_LANES):  # of both models together, each of which has so many of its own
            model = "b" if k < MAX_LANES // 2 else "a"
            assert await answered_by(model=model, stream_id=str(k)) == model
        assert await answered_by(stream_id="two") == "a"


async def test_a_client_that_leaves_its_socket_leaves_its_models(folder: Path) -> None:
    async with pooled(folder, {"alias": "a"}) as pool:
        pool.engines["a"].script = lambda plan: [asyncio.Event()]
        async with websocket(pool.app) as socket:
            for lane in ("x", "y"):
                socket.create(model="a", input="hi", stream_id=lane)
            while len(pool.engines["a"].generations) < 2:
                await asyncio.sleep(0.005)
            assert pool.fleet.members["a"].busy == 2
        while pool.fleet.members["a"].busy or not all(one.cancelled for one in pool.engines["a"].generations):
            await asyncio.sleep(0.005)


async def test_a_socket_whose_key_is_taken_away_is_closed(folder: Path, keys: Keys, tmp_path: Path) -> None:
    async with pooled(folder, {"alias": "a"}, keys=keys) as pool:
        async with websocket(pool.app, headers=[(b"authorization", b"Bearer secret-a")]) as socket:
            assert (await socket.answer(model="a", input="hi"))["status"] == "completed"
            (tmp_path / "keys").write_text("secret-b name=bob\n")
            keys.load()
            socket.create(model="a", input="hi")
            assert (await socket.until("error"))[-1]["status"] == 401
            while socket.closed is None:
                await asyncio.sleep(0.005)
            assert socket.closed == 1008
        async with websocket(pool.app) as socket:
            await asyncio.wait_for(socket.task, 30)
            assert not socket.accepted
