"""The page in a real Chromium: what an operator sees and does, on a phone, by keyboard, with cameras that die.

Here a server plays recorded cameras; the page before the real app is tested in test_serve.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from operators.draw import track_color
from pipelines.serving.guard import GuardConfig
from tests.end_to_end.browser import Browser, Page, chromium
from tests.pipelines.recorded_server import Recorded, Running, recording, serving, status, until

TOKEN = "a-token-that-nobody-guesses"
TILES = "document.querySelectorAll('.tile').length"
DRAWN = "[...document.querySelectorAll('.tile canvas')].filter((c) => c.dataset.pictures > 0).length"
HOSTILE = "<img src=x onerror=\"document.title='taken'\">\u202egnp.exe\0"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def shown(browser: Browser, in_time: None) -> Iterator[Callable[..., tuple[Page, Recorded, Running]]]:
    """shown(status(...), ...) -> the page with these cameras, what is played, and the server. Afterwards nothing may
    have gone wrong in the page's scripts."""
    ended = []

    def show(*statuses: dict, config: GuardConfig | None = None, path: str = "/", **how: object):
        played = Recorded(*statuses)
        running = serving(played, config)
        server = running.__enter__()
        page = browser.page(server.address + path, **how)
        ended.append((page, running))
        return page, played, server

    yield show
    for page, running in ended:
        errors = page.value("1") and page.errors
        page.close()
        running.__exit__(None, None, None)
        assert errors == []


# ------------------------------------------------------------------------------------------------------------- the grid


def test_without_cameras_it_says_how_to_add_one(shown):
    page, _, _ = shown()
    page.until("!document.getElementById('empty').hidden")
    assert "No camera yet" in page.text() and "maskstream serve --camera" in page.text()
    page.click("#add-first")
    page.until("document.getElementById('add-dialog').open")


def test_a_tile_says_what_its_camera_does(shown):
    dropped = {"queue_full_oldest": 1200, "damaged": 34, "of_tomorrow": 5, "restarted": 0}
    frames = {"in": 5000, "out": 3759, "in_flight": 2, "dropped": dropped}
    page, _, server = shown(status("door", frames=frames), status("gate", latency_ms={"p50": 240.0, "p95": 1449.0}))
    page.until(f"{TILES} === 2 && {DRAWN} === 2")
    door, gate = (page.text(f".tile:nth-child({n})") for n in (1, 2))
    for said in ("door", "live", "11.8 of 12.0", "84 / 131 ms", "1,239", "1,200 queue full, oldest", "34 damaged",
                 "5 of_tomorrow"):  # fmt: skip
        assert said in door
    assert "restarted" not in door and "0.2 / 1.4 s" in gate
    over = "[...document.querySelectorAll('.tile .no-picture')].map((note) => note.checkVisibility())"
    assert page.value(over) == [False, False], "nobody waits for a picture that is there"
    assert page.text("#summary") == "2 cameras, 2 live · 23.6 frames a second"
    assert all(address.startswith((server.address, "about:")) for address in page.asked)


STATES = [
    ({"state": "connecting"}, "connecting", "Connecting."),
    ({"state": "reconnecting", "reason": "No frame for 5.0 s.", "retry_in_s": 3.2}, "reconnecting in 4 s",
     "No frame for 5.0 s."),
    ({"state": "reconnecting", "retry_in_s": 0.0}, "reconnecting", "No frame comes any more."),
    ({"state": "ended", "reason": "The file has ended."}, "ended", "The file has ended."),
    ({"state": "failed", "reason": "The network cannot see 0 x 0."}, "failed", "The network cannot see 0 x 0."),
    ({"state": {}}, "failed", "The stream failed."),
]  # fmt: skip


def test_states(shown):
    page, _, _ = shown(*(status(f"camera-{n}", fps_out=0.0, **changes) for n, (changes, _, _) in enumerate(STATES)))
    page.until(f"{TILES} === {len(STATES)}")
    said = page.value("""[...document.querySelectorAll('.tile')].map((tile) => [
        tile.querySelector('.badge').textContent, tile.querySelector('.no-picture').textContent])""")
    assert said == [[badge, over_picture] for _, badge, over_picture in STATES]


def test_a_camera_that_dies_keeps_its_last_picture_and_comes_back(shown):
    page, played, _ = shown(status("door"), status("gate"))
    page.until(f"{DRAWN} === 2")
    played.statuses[0] |= {"state": "reconnecting", "reason": "No frame for 5.0 s.", "retry_in_s": 2.0}
    page.until("document.querySelector('.badge').textContent === 'reconnecting in 2 s'")
    assert page.text(".no-picture") == "No frame for 5.0 s."
    assert [page.text(f".tile:nth-child({n}) [data-is=tracks]") for n in (1, 2)] == ["–", "3"]
    assert page.value("getComputedStyle(document.querySelector('.picture canvas')).filter") != "none"
    assert page.value("document.querySelector('.picture canvas').width") == 320
    assert page.value("announce.textContent") == "door: reconnecting"
    asked = sum("door/overlay.jpg" in address for address in page.asked)
    count = "document.querySelectorAll('.tile canvas')[{}].dataset.pictures"
    other = page.value(count.format(1))
    page.until(f"{count.format(1)} > {other} + 3")      # the other camera goes on, and nobody asks for a dead picture
    assert sum("door/overlay.jpg" in address for address in page.asked) <= asked + 1
    played.statuses[0] |= {"state": "live", "reason": "", "retry_in_s": None}
    before = page.value(count.format(0))
    page.until(f"{count.format(0)} > {before} && document.querySelector('.no-picture').hidden")


def test_sixteen_cameras_all_move_and_the_buttons_still_work(shown):
    page, played, _ = shown(*(status(f"camera-{n}") for n in range(16)), width=1600, height=1300)
    page.until(f"{DRAWN} === 16")
    page.until("[...document.querySelectorAll('.tile canvas')].every((c) => c.dataset.pictures > 2)")
    page.click(".tile:nth-child(3) .remove")
    page.click("#remove-dialog .danger")
    page.until(f"{TILES} === 15")
    assert played.of("camera-2") is None and "camera-2" not in page.text("#tiles").split()


def test_what_is_out_of_sight_is_not_fetched(shown):
    page, _, _ = shown(*(status(f"camera-{n}") for n in range(12)), width=390, height=700, phone=True)
    page.until("document.querySelector('.tile canvas').dataset.pictures > 3")     # others would have had their turn
    assert not any("camera-11/" in address for address in page.asked)
    page.value("window.scrollTo(0, document.body.scrollHeight)")
    page.until("document.querySelector('.tile:last-child canvas').dataset.pictures > 0")


def test_pixels_are_those_of_the_server(shown):
    page, played, _ = shown(status("door"))
    (jpeg, _), *_ = recording(11)
    played.frames["door"] = [(jpeg, [])]
    page.until(f"{DRAWN} === 1")
    same = """(async () => {
        const picture = await createImageBitmap(await (await fetch('streams/door/overlay.jpg')).blob());
        const canvas = new OffscreenCanvas(picture.width, picture.height);
        canvas.getContext('2d').drawImage(picture, 0, 0);
        const pixels = (context) => String(context.getImageData(0, 0, 320, 180).data);
        return pixels(canvas.getContext('2d')) === pixels(document.querySelector('.tile canvas').getContext('2d'));
    })()"""
    page.until("document.querySelector('.tile canvas').dataset.pictures > 1")
    assert page.value(same)


# ----------------------------------------------------------------------------------------------------- one camera large


def test_one_camera_large(shown):
    page, played, _ = shown(status("door"), status("gate"))
    page.until(f"{DRAWN} === 2")
    page.click(".tile:nth-child(2) .open")
    page.until("document.querySelectorAll('#timeline-rows tr').length > 2")
    page.until("document.querySelector('#camera-picture canvas').dataset.pictures > 2")
    assert page.text("#camera-name") == "gate" and page.value("location.hash") == "#/camera/gate"
    assert "rtsp://10.0.0.7/gate" in page.text("#camera") and "1,204" in page.text("#camera-figures")
    assert played.open_pictures == ["gate"] == played.open_sockets
    rows = page.value("""[...document.querySelectorAll('#timeline-rows tr')].map((row) => [
        row.querySelector('th').textContent, row.querySelector('i').style.backgroundColor,
        row.querySelector('.label').textContent])""")
    known = {(f"#{one['track_id']}", one["category"]) for _, seen in recording(11) for one in seen}
    for number, color, label in rows:
        assert color == f"rgb{track_color(int(number[1:]))}" and (number, label) in known
    page.press("Escape")
    page.until("!document.getElementById('grid').hidden && document.getElementById('camera').hidden")
    assert page.value("document.activeElement.getAttribute('aria-label')") == "Show gate large"
    until(lambda: not played.open_pictures and not played.open_sockets)


def test_a_cut_stream_of_tracks_is_taken_up_again(shown):
    page, played, _ = shown(status("door"))
    played.records_before_cut = 3
    page.value("location.hash = '#/camera/door'")
    page.until("document.getElementById('timeline-note').textContent.includes('was cut; next try in 1 s')")
    page.until("document.getElementById('timeline-note').textContent === ''")
    until(lambda: played.open_sockets == ["door"])


def test_another_stream_of_the_name_is_followed(shown):
    """A camera was removed and added again between two looks of the page. Only tracks that are drawn have a row."""
    page, played, _ = shown(status("door", min_score=0.85), path="/#/camera/door")
    page.until("document.querySelectorAll('#timeline-rows tr').length > 2")
    lowest = "Math.min(...[...document.querySelectorAll('#timeline-rows tr')].map((row) => +row.cells[2].textContent))"
    assert page.value(lowest) >= 0.85
    before = len(played.asked_after)
    told = [{"track_id": id, "category": name, "score": score} for id, name, score in
            ((998, "unsure", 0.84), (999, "another", 0.85))]  # fmt: skip
    played.frames["door"] = [(recording(11)[0][0], told)]
    played.statuses[0] |= {"started_at": played.statuses[0]["started_at"] + 60}
    until(lambda: len(played.asked_after) > before and len(played.open_sockets) == 1)
    page.until("document.getElementById('timeline-rows').textContent.includes('another')")
    page.until("document.querySelectorAll('#timeline-rows tr').length === 1")


def test_a_hidden_page_asks_for_nothing(shown):
    page, played, _ = shown(status("door"), path="/#/camera/door")
    until(lambda: played.open_pictures and played.open_sockets)
    hide = "Object.defineProperty(document, 'hidden', {{ configurable: true, get: () => {} }});"
    tell = "document.dispatchEvent(new Event('visibilitychange'))"
    page.value(hide.format("true") + tell)
    until(lambda: not played.open_pictures and not played.open_sockets)
    page.value(hide.format("false") + tell)
    until(lambda: played.open_pictures and played.open_sockets)
    page.value("location.hash = '#/'")
    page.until(f"{DRAWN} === 1")
    page.value(hide.format("true") + tell + "; new Promise((done) => setTimeout(done, 500))")     # what is under way
    asked = len(page.asked)
    page.value("new Promise((done) => setTimeout(done, 500))")                                    # six pictures' time
    assert len(page.asked) == asked


def test_a_camera_that_is_gone(shown):
    page, _, _ = shown(status("door"), path="/#/camera/elsewhere")
    page.until("document.querySelector('#camera-picture .no-picture').textContent.includes('no camera of this name')")
    page.click("#back")
    page.until(f"{DRAWN} === 1")


HISTORY = "import('./timeline.js').then(({ TrackHistory }) => { const history = new TrackHistory(); %s })"


@pytest.fixture(scope="module")
def modules(browser: Browser) -> Iterator[Page]:
    """An empty page, whose modules are called by themselves."""
    with serving(Recorded()) as server:
        page = browser.page(server.address)
        page.until("document.readyState === 'complete' && !document.getElementById('empty').hidden")
        yield page
        page.close()


def test_history_by_hand(modules):
    records = [(10.0, [3]), (10.5, [3, 7]), (11.0, [7]), (11.5, [3, 7]), (12.0, [])]
    script = """
        for (const [time, ids] of %s) {
            const instances = ids.map((id) => ({ track_id: id, category: `kind ${id}`, score: time / 100 }));
            history.add({ captured_at: time, instances });
        }
        history.add({ captured_at: null, instances: [{ track_id: 1 }] }); history.add(null); history.add({});
        history.add({ captured_at: 12.5, instances: [null, { track_id: "9" }, { track_id: 3.5 }, { track_id: 7 }] });
        const rows = history.rows().map((row) => structuredClone(row));
        for (const time of [72, 73]) {      // 60 s and more after the first spells, after all
            history.add({ captured_at: time, instances: [] });
            rows.push(history.rows().map(({ id, spells }) => [id, ...spells]));
        }
        return rows;"""
    seven, three, *later = modules.value(HISTORY % (script % json.dumps(records)))
    said = [[row[key] for key in ("id", "here", "spells", "seconds")] for row in (seven, three)]
    assert said == [[7, True, [[10.5, 11.5], [12.5, 12.5]], 1], [3, False, [[10, 10.5], [11.5, 11.5]], 0.5]]
    assert later == [[[7, [12.5, 12.5]]], []]
    assert three["label"] == "kind 3" and three["score"] == 0.115


def test_history_goes_on_when_records_do_not(modules):
    """A camera died at 10.5: its tracks are not in the picture any more, and move to the left until they are gone."""
    script = """
        for (const time of [10, 10.5]) history.add({ captured_at: time, instances: [{ track_id: 3, category: "a" }] });
        const before = history.clock;
        return new Promise((done) => setTimeout(done, 50)).then(() => [before, history.clock - before,
            ...[10.5, 15.5, 15.6, 70.5, 70.6].map((now) => history.rows(now).map(({ here }) => here))]);"""
    before, passed, *here = modules.value(HISTORY % script)
    assert 10.5 <= before < 15.5 and 0.04 <= passed < 5
    assert here == [[True], [True], [False], [False], []]
    assert modules.value(HISTORY % "return [history.clock, history.rows().length];") == [0, 0]


def test_history_is_bounded_whatever_comes(modules):
    flood = """
        for (let i = 0; i < 300; i++) history.add({ captured_at: i / 60, instances: Array.from({ length: 300 },
            (_, k) => ({ track_id: i * 300 + k, category: "x".repeat(1000), score: 1 })) });
        for (let i = 0; i < 600; i++) history.add({ captured_at: 50 + i / 60,
            instances: i %% 2 ? [{ track_id: 5, category: "five" }] : [] });
        const rows = history.rows();
        const blinks = rows.find(({ id }) => id === 5).spells.length;
        history.add({ captured_at: -1e9, instances: [] });
        return [rows.length, blinks, Math.max(...rows.map(({ label }) => label.length)), history.rows().length];"""
    tracks, blinks, letters, after = modules.value(HISTORY % flood.replace("%%", "%"))
    assert tracks <= 64 and blinks == 64 and letters <= 40 and after == 0


def test_colors_are_those_of_the_pictures(modules):
    ids = [0, 1, 31, 32, 63, 1000, -1]
    colors = modules.value(f"import('./colors.js').then(({{ trackColor }}) => {ids}.map(trackColor))")
    assert colors == ["#{:02x}{:02x}{:02x}".format(*track_color(id)) for id in ids]


# --------------------------------------------------------------------------------------------- adding, removing, tokens


def test_add_a_camera(shown):
    page, played, _ = shown()
    page.until("!document.getElementById('empty').hidden")
    page.click("#add")
    page.fill("[name=id]", "yard")
    page.fill("[name=url]", "rtsp://127.0.0.1/x")
    page.click("#add-dialog [type=submit]")
    page.until("document.querySelector('#add-dialog .error').textContent.includes('not listed in allow.hosts')")
    page.fill("[name=url]", "rtsp://u:p@10.0.0.9/1")
    page.press("Enter")
    page.until(f"{TILES} === 1 && !document.getElementById('add-dialog').open")
    assert played.bodies[-1] == {"id": "yard", "url": "rtsp://u:p@10.0.0.9/1", "policy": "drop_oldest", "queue": 8}
    page.until("document.activeElement.getAttribute('aria-label') === 'Show yard large'")
    page.click("#add")
    page.fill("[name=id]", "pushed")
    page.click("[value=push]")
    page.until("document.getElementById('add-url').hidden")
    page.click("#add-dialog [type=submit]")
    page.until(f"{TILES} === 2")
    assert played.bodies[-1] == {"id": "pushed", "policy": "drop_oldest", "queue": 8}


def test_remove_the_large_camera(shown):
    page, played, _ = shown(status("door"), status("gate"), path="/#/camera/door")
    page.until("!document.getElementById('camera').hidden")
    page.click("#camera-remove")
    page.until("document.getElementById('remove-dialog').open")
    assert page.text("#remove-title") == "Remove door?"
    page.press("Escape")                                    # closes the question, not the camera
    page.until("!document.getElementById('remove-dialog').open")
    assert page.value("location.hash") == "#/camera/door" and len(played.statuses) == 2
    page.click("#camera-remove")
    page.click("#remove-dialog .danger")
    page.until(f"{TILES} === 1 && !document.getElementById('grid').hidden")


def test_a_token_that_ran_out_is_asked_for_again(shown, tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"wall {TOKEN}\n")
    file.chmod(0o600)
    page, _, _ = shown(status("door"), config=GuardConfig(token_file=file, token_env=""), path=f"/?token={TOKEN}")
    page.until(f"{DRAWN} === 1")
    assert TOKEN not in page.value("location.href + document.cookie + JSON.stringify(localStorage)")
    page.call("Network.clearBrowserCookies")
    page.until("document.getElementById('token-dialog').open")
    assert page.value(TILES) == 0
    page.fill("[name=token]", "another-token-of-no-use")
    page.press("Enter")
    page.until("document.querySelector('#token-dialog .error').textContent === 'The token is not known here.'")
    page.fill("[name=token]", TOKEN)
    page.press("Enter")
    page.until(f"{DRAWN} === 1 && !document.getElementById('token-dialog').open")
    page.click(".tile .open")                               # by the cookie alone
    page.until("document.querySelectorAll('#timeline-rows tr').length > 0")
    assert not any(TOKEN in address for address in page.asked[1:])


def test_a_server_that_goes_away_and_comes_back(shown):
    page, played, server = shown(status("door"), path="/#/camera/door")
    until(lambda: played.open_pictures and played.open_sockets)
    page.until("document.getElementById('summary').textContent.startsWith('1 camera')")
    server.stop()
    page.until("document.getElementById('trouble').textContent.startsWith('The server cannot be reached.')")
    assert "What is shown is of" in page.text("#trouble") and page.text("#camera-name") == "door"
    server.start()
    page.until("document.getElementById('trouble').hidden")
    until(lambda: played.open_pictures and played.open_sockets)


# ------------------------------------------------------------------------------------ whoever uses it, whatever is sent


def test_hostile_names_and_values_stay_text(shown):
    dropped = {HOSTILE: 30, "__proto__": 4, "n": "x"} | {f"reason {n}": 2 for n in range(40)}
    worst = status(HOSTILE, url=HOSTILE * 100, reason=HOSTILE * 100, width="wide", fps_out=1e300, fps_in=None,
                   latency_ms=None, tracks="<b>9</b>", frames={"dropped": dropped})  # fmt: skip
    odd = [{"id": ".."}, {"id": ""}, {"id": 5}, None, 7, {"id": "bare"}, status("long" * 500, frames=None, state=None)]
    page, played, _ = shown(worst, *odd, status("door"))
    page.until(f"{TILES} === 4 && {DRAWN} >= 1")
    assert page.value("document.querySelectorAll('.tile:first-child .reasons li').length") == 12
    assert page.text("[data-is=dropped]") == "114"
    page.click(".tile .open")
    page.until("document.getElementById('camera-name').textContent.startsWith('<img src=x')")
    played.frames[HOSTILE] = [(recording(11)[0][0], [{"track_id": 1, "category": HOSTILE, "score": "NaN"}])]
    page.value("location.hash = '#/'")
    page.click(".tile:nth-child(1) .remove")
    page.until("document.getElementById('remove-dialog').open")
    said = page.value("document.body.textContent")
    assert "\u202e" not in said and "\0" not in said and "\ufffdgnp.exe" in said
    assert page.value("document.querySelectorAll('main img, dialog img').length") == 0
    assert page.value(FITS) and "taken" not in page.value("document.title")


@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everything_fits_and_can_be_read(shown, phone, dark):
    size = (360, 740) if phone else (1280, 800)
    page, _, _ = shown(status("a-long-name-" * 5), status("door", state="failed", reason="x" * 400), width=size[0],
                       height=size[1], dark=dark, phone=phone)  # fmt: skip
    page.until(f"{DRAWN} >= 1")
    assert page.value(FITS) and page.value(CONTRAST) == []
    page.click(".tile .open")
    page.until("document.querySelectorAll('#timeline-rows tr').length > 0")
    assert page.value(FITS) and page.value(CONTRAST) == []
    page.click("#add")
    page.until("document.getElementById('add-dialog').open")
    assert page.value(FITS) and page.value(CONTRAST) == []


def test_by_keyboard_and_screen_reader(shown):
    page, _, _ = shown(status("door"), status("gate"))
    page.until(f"{DRAWN} === 2")
    found = page.accessible()
    assert [pair for pair in found if pair[0] in ("button", "link", "textbox", "dialog") and not pair[1]] == []
    for pair in [("heading", "door"), ("link", "Show door large"), ("button", "Remove gate"), ("button", "Add camera"),
                 ("list", "Dropped, by reason")]:  # fmt: skip
        assert pair in found
    order = []
    for _ in range(5):
        page.press("Tab")
        order.append(page.value("document.activeElement.ariaLabel ?? document.activeElement.textContent.trim()"))
    assert order == ["Add camera", "Show door large", "Remove door", "Show gate large", "Remove gate"]
    page.value("document.querySelector('.open').focus()")
    page.press("Enter")
    page.until("document.activeElement.id === 'camera-name'")
    assert ("image", "Picture of door, with masks") in page.accessible()
    page.press("Escape")
    page.until("document.activeElement.ariaLabel === 'Show door large'")


FITS = "document.documentElement.scrollWidth <= innerWidth"
CONTRAST = """(() => {
    const parse = (color) => {
        const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
        return { rgb: [r, g, b], a };
    };
    const light = (rgb) => {
        const [r, g, b] = rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (node) => {
        for (; node; node = node.parentElement) {
            const { rgb, a } = parse(getComputedStyle(node).backgroundColor);
            if (a === 1) return rgb;
        }
        return [255, 255, 255];
    };
    const poor = [];
    for (const node of document.body.querySelectorAll("*")) {
        const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
        if (!own || !node.checkVisibility() || node.disabled || node.matches("noscript, option")) continue;
        const [a, b] = [light(parse(getComputedStyle(node).color).rgb), light(behind(node))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) poor.push([node.tagName, node.textContent.slice(0, 40), ratio]);
    }
    return poor;
})()"""
"""What is harder to read than WCAG 2.1 AA allows: text on what is painted behind it."""


def test_files_are_served_as_they_are():
    """No build chain: what lies in the folder is what the browser gets, and no file holds an inline script or style."""
    folder = Path(__file__).resolve().parents[2] / "pipelines" / "serving" / "page"
    index = (folder / "index.html").read_text()
    assert "style=" not in index and " on" + "click" not in index and index.count("<script") == 1
    for path in folder.glob("*.js"):
        text = path.read_text()
        assert not any(word in text for word in ("innerHTML", "outerHTML", "AdjacentHTML", "eval(", "document.write"))
