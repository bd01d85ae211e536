"""Who has which stream, told call by call, with a clock that the test moves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.serving.registry import AWAY_S, SETTLED_S, Registry
from pipelines.serving.streams import Account, PlanFull, StreamSpec, StreamTaken, Told, UnknownStream, blank_status


class Scene:
    """A registry, its time, and which actors are dead."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.dead: set[str] = set()
        self.registry = Registry(lambda actor: actor in self.dead, lambda: self.now)

    def sync(self, owner: str, *told: Told, most: int = 4, leaving: bool = False):
        return self.registry.sync(owner, f"actor of {owner}", most, told, leaving)

    def owners(self) -> dict[str, str]:
        return self.registry.overview().owners


def spec(name: str, created_at: float = 1.0) -> StreamSpec:
    return StreamSpec(id=name, created_at=created_at)


def told(one: StreamSpec, fps: float = 0.0, **fields) -> Told:
    account = fields.pop("account", Account(frames_in=10, out=10, next_index=10))
    return Told(one, {**blank_status(one, "live", ""), "fps_in": fps}, account, **fields)


def test_no_stream() -> None:
    scene = Scene()
    assert scene.sync("a") == scene.sync("a")
    view = scene.registry.overview()
    assert (view.statuses, view.owners, view.replicas, view.room) == ((), {}, 1, 4)


def test_nobody_there() -> None:
    with pytest.raises(PlanFull, match="No replica is ready"):
        Scene().registry.register(spec("x"))


def test_streams_are_shared_out_evenly_and_stay() -> None:
    scene = Scene()
    scene.sync("a")
    scene.sync("b")
    for name in "wxyz":
        scene.registry.register(spec(name))
    before = scene.owners()
    assert sorted(before.values()) == ["a", "a", "b", "b"]
    scene.sync("c")
    assert scene.owners() == before
    assert {opening.spec.id for opening in scene.sync("a").openings} == {name for name in "wxyz" if before[name] == "a"}


def test_plan_full_and_taken() -> None:
    scene = Scene()
    scene.sync("a", most=1)
    assert scene.registry.register(spec("x"))["state"] == "connecting"
    with pytest.raises(StreamTaken, match="'x' already"):
        scene.registry.register(spec("x", 2.0))
    with pytest.raises(PlanFull, match="1 of 1 streams"):
        scene.registry.register(spec("y"))
    scene.registry.remove("x")
    scene.registry.register(spec("y"))
    with pytest.raises(UnknownStream, match="no stream 'x'"):
        scene.registry.remove("x")


def declared(name: str, created_at: float = 1.0, **fields) -> StreamSpec:
    return replace(spec(name, created_at), url=f"rtsp://{name}", declared=True, **fields)


def test_no_camera_is_declared() -> None:
    scene = Scene()
    scene.sync("a")
    scene.registry.register(spec("posted"))
    scene.registry.declare([])
    assert scene.owners() == {"posted": "a"}


def test_the_settings_change_what_they_named() -> None:
    """Kept: what is named as before. Anew: another address. Ended: no more named. What was posted is nobody else's."""
    scene = Scene()
    scene.sync("a", most=8)
    scene.registry.register(spec("posted"))
    scene.registry.declare([declared("kept"), declared("moved"), declared("gone")])
    assert set(scene.owners()) == {"posted", "kept", "moved", "gone"}
    streams = [told(each) for each in (spec("posted"), declared("kept"), declared("moved"), declared("gone"))]
    assert scene.sync("a", *streams, most=8).openings == ()
    scene.registry.declare([declared("kept", 2.0), replace(declared("moved", 2.0), url="rtsp://elsewhere")])
    orders = scene.sync("a", *streams, most=8)
    assert set(orders.drop) == {"moved", "gone"}
    assert [opening.spec.url for opening in orders.openings] == ["rtsp://elsewhere"]
    assert set(scene.owners()) == {"posted", "kept", "moved"}


def test_a_camera_that_was_removed_stays_away_until_the_settings_name_it_otherwise() -> None:
    scene = Scene()
    scene.sync("a")
    known = scene.registry.declare([declared("x")])
    scene.registry.remove("x")
    assert scene.registry.declare([declared("x", 2.0)]) == known and not scene.owners()     # another ingress process
    scene.registry.declare([declared("x", 3.0, queue=2)])
    assert set(scene.owners()) == {"x"}


def test_cameras_find_no_room_and_are_declared_again() -> None:
    scene = Scene()
    with pytest.raises(PlanFull, match="No replica is ready"):
        scene.registry.declare([declared("x")])
    scene.sync("a", most=1)
    with pytest.raises(PlanFull, match="1 of 1 streams"):
        scene.registry.declare([declared("x"), declared("y")])
    scene.sync("b", most=1)
    scene.registry.declare([declared("x"), declared("y")])
    assert scene.owners() == {"x": "a", "y": "b"}


def test_a_new_registry_is_told_of_cameras_again_once_owners_have_spoken() -> None:
    before, scene = Scene(), Scene()
    before.sync("a")
    known = before.registry.declare([declared("x"), declared("y")])
    scene.now = scene.registry._made_at = known + 60       # made later, and empty
    assert scene.registry.declare([declared("x"), declared("y")], known) == known, "it waits for what owners have"
    scene.sync("a", told(declared("x")))
    scene.now += SETTLED_S + 1
    scene.sync("a", told(declared("x")))
    assert scene.registry.declare([declared("x", 2.0), declared("y", 2.0)], known) > known
    assert set(scene.owners()) == {"x", "y"} and scene.sync("a", told(declared("x"))).drop == ()


def test_removed_stream_is_dropped_by_its_owner_and_a_new_one_of_its_name_is_opened() -> None:
    scene = Scene()
    scene.sync("a")
    scene.registry.register(spec("x", 1.0))
    scene.sync("a", told(spec("x", 1.0)))
    scene.registry.remove("x")
    assert scene.sync("a", told(spec("x", 1.0))).drop == ("x",)
    scene.registry.register(spec("x", 2.0))
    orders = scene.sync("a", told(spec("x", 1.0)))
    assert orders.drop == ("x",)
    assert [opening.spec.created_at for opening in orders.openings] == [2.0]


def test_a_stream_begins_where_one_of_its_name_is_not_closed_yet() -> None:
    """Its owner has one stream more than the other, which is taken once the owner has spoken without it, or is dead."""
    for heard, owner in (("it is there", "a"), ("it is closed", "b"), ("dead", "b")):
        scene = Scene()
        scene.sync("a")
        scene.sync("b")
        for name in ("x", "gone", "other"):
            scene.registry.register(spec(name))
        assert scene.owners() == {"x": "a", "gone": "b", "other": "a"}
        scene.registry.remove("gone")
        scene.sync("b")
        scene.sync("a", told(spec("x")), told(spec("other")))
        scene.registry.remove("x")
        if heard == "dead":
            scene.now += 3.0
            scene.dead.add("actor of a")
        else:
            scene.sync("a", told(spec("other")), *[told(spec("x"))] * (heard == "it is there"))
        scene.sync("b")
        scene.registry.register(spec("x", 2.0))
        assert scene.owners()["x"] == owner, heard


def test_a_stream_does_not_come_back_when_another_of_its_name_came_and_went_meanwhile() -> None:
    """Its owner, which is asked twice a second, speaks of the first one after the second was removed."""
    scene = Scene()
    scene.sync("a")
    for created_at in (1.0, 2.0):
        scene.registry.register(spec("x", created_at))
        scene.registry.remove("x")
    assert scene.sync("a", told(spec("x", 1.0))).drop == ("x",)
    assert scene.registry.overview().statuses == ()


@pytest.mark.parametrize("dies", [pytest.param(True, id="dead"), pytest.param(False, id="silent")])
def test_streams_of_a_lost_owner_go_on_elsewhere(dies: bool) -> None:
    """Heard last 3 s (dead) or AWAY_S + 1 s (silent) ago, at 5 frames a second: so many and one are passed over."""
    scene = Scene()
    scene.sync("a")
    scene.registry.register(spec("x"))
    account = Account(frames_in=40, out=30, dropped={"queue_full_oldest": 10}, next_index=40)
    scene.sync("a", told(spec("x"), fps=5.0, account=account, states={"group": b"memory"}))
    scene.sync("b")
    silent_s = 3.0 if dies else AWAY_S + 1.0
    scene.now += silent_s
    scene.dead |= {"actor of a"} if dies else set()
    (status,) = scene.registry.overview().statuses
    assert status["state"] == "reconnecting" and "died" in status["reason"] and status["fps_in"] == 0
    (opening,) = scene.sync("b").openings
    gap = int(silent_s * 5) + 1
    assert opening.states == {"group": b"memory"}
    assert opening.account.next_index == 40 + gap
    assert opening.account.dropped == {"queue_full_oldest": 10, "restarted": gap}
    assert opening.account.frames_in == opening.account.out + sum(opening.account.dropped.values())
    late = scene.sync("a", told(spec("x")))      # it was only slow: it is not its stream any more
    assert late.drop == ("x",) and scene.owners() == {"x": "b"}


def test_a_living_owner_that_is_silent_for_a_moment_keeps_its_streams() -> None:
    scene = Scene()
    scene.sync("a")
    scene.sync("b")
    scene.registry.register(spec("x"))
    scene.now += 3.0
    assert scene.owners() == {"x": "a"}


def test_an_owner_that_shuts_down_gives_its_streams_away() -> None:
    scene = Scene()
    scene.sync("a")
    scene.registry.register(spec("x"))
    scene.sync("a", told(spec("x"), states={"group": b"all"}, released=True), leaving=True)
    view = scene.registry.overview()
    assert (view.replicas, view.owners) == (0, {})
    (opening,) = scene.sync("b").openings
    assert (opening.states, opening.account.next_index, opening.account.dropped) == ({"group": b"all"}, 10, {})


def test_a_younger_registry_learns_from_the_owners() -> None:
    scene = Scene()
    assert not scene.registry.overview().settled
    assert scene.sync("a", told(spec("x"))).drop == ()
    assert scene.owners() == {"x": "a"}
    scene.now += SETTLED_S + 0.1
    assert scene.registry.overview().settled


@pytest.mark.parametrize("state", ["ended", "failed"])
def test_what_is_over_is_not_opened_again(state: str) -> None:
    scene = Scene()
    scene.sync("a")
    scene.registry.register(spec("x"))
    over = replace(told(spec("x")), status=blank_status(spec("x"), state, ""))
    scene.sync("a", over)
    scene.dead.add("actor of a")
    scene.now += 3.0
    assert scene.sync("b").openings == ()
    assert [status["state"] for status in scene.registry.overview().statuses] == [state]


def test_the_end_of_the_server() -> None:
    scene = Scene()
    scene.sync("a")
    scene.registry.register(spec("x"))
    scene.sync("a", told(spec("x")))
    scene.registry.close()
    assert scene.sync("a", told(spec("x"))).release == ("x",)
    scene.sync("a", told(spec("x"), states={}, released=True))
    assert scene.owners() == {} and scene.registry.overview().closing
    with pytest.raises(PlanFull, match="shut down"):
        scene.registry.register(spec("y"))


def test_the_end_waits_for_nothing_that_cannot_come() -> None:
    """Of five streams two may still give results: one is played, of one that ended two frames are behind. One ended,
    one failed, and one was registered so late that its owner never opened it."""
    scene = Scene()
    scene.sync("a", most=8)
    known = {name: told(spec(name)) for name in ("played", "ending", "ended", "failed")}
    for name, state, held in (("ending", "ended", 2), ("ended", "ended", 0), ("failed", "failed", 0)):
        status = blank_status(spec(name), state, "")
        known[name] = replace(known[name], status={**status, "frames": {**status["frames"], "in_flight": held}})
    for name in known:
        scene.registry.register(spec(name))
    scene.sync("a", *known.values(), most=8)
    scene.registry.register(spec("late"))
    scene.registry.close()
    assert scene.registry.overview().under_way == 3, "nobody knows yet whether it was opened"
    orders = scene.sync("a", *known.values(), most=8)
    assert (orders.openings, set(orders.release)) == ((), set(known))
    assert scene.registry.overview().under_way == 2
    over = [replace(known[name], states={}, released=True) for name in ("played", "ending")]
    scene.sync("a", *over, known["ended"], known["failed"], most=8)
    assert scene.registry.overview().under_way == 0
