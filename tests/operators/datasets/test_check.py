"""Each kind of fault alone, at its place and nothing else beside it; many at once; no input that crashes the check."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operators.datasets.check import Tolerance, find_faults, open_dataset
from operators.datasets.check_file import JsonDataset
from operators.datasets.faults import KINDS, Fault, Report
from operators.datasets.fix import fix_dataset
from operators.errors import ConfigError, DatasetError
from operators.youtube_vis_data import read_dataset
from tests.operators.datasets.damaged_datasets import ALL, damaged, put, write_sound


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return write_sound(tmp_path_factory.mktemp("sound"))


def found(path: Path, **how) -> list[Fault]:
    return list(find_faults(open_dataset(path), **how))


def places(faults: list[Fault]) -> list[tuple]:
    return [(fault.kind, (fault.video_id, fault.annotation_id, fault.frame)) for fault in faults]


@pytest.mark.parametrize(("damage", "expected"), ALL)
def test_faults(damage, expected, sound, tmp_path):
    faults = found(damaged(sound, tmp_path, damage))
    assert places(faults) == expected
    for fault in faults:
        assert fault.found and fault.expected and str(tmp_path) in fault.file
        assert str(fault).isprintable() and len(str(fault)) < 1000
        json.dumps(fault.as_json(), allow_nan=False)


def test_the_table_has_every_kind():
    told = {kind for param in ALL for kind, _ in param.values[1]}
    davis = {"sequence", "label", "only", "void", "first", "object"}
    assert told | {"no-videos"} == {kind for kind in KINDS if kind.split("-")[0] not in davis}


def test_what_the_strict_reader_refuses_is_an_error(sound, tmp_path):
    """The doctor is never more lenient than the reader: a file that it finds sound is read."""
    for number, param in enumerate(ALL):
        damage, expected = param.values
        path = damaged(sound, tmp_path / str(number), damage)
        try:
            dataset = read_dataset(path)
            for annotation in dataset.annotations:
                dataset.masks(annotation)
        except DatasetError as error:
            assert any(KINDS[kind].severity == "error" for kind, _ in expected), f"{param.id}: {error}"


def test_an_error_says_what_was_found_and_what_was_expected(sound, tmp_path):
    path = damaged(sound, tmp_path, put("annotations", 5, "segmentations", 1, "size", [96, 64]))
    (fault,) = found(path)
    assert str(fault) == (f"video 2 (clip_00001), annotation 6, frame 1: size [96, 64]; expected [64, 96], height and "
                          f"width of the video [{path}]")


def test_no_videos(tmp_path):
    (tmp_path / "a.json").write_text('{"videos": [], "categories": [], "annotations": []}')
    assert [fault.kind for fault in found(tmp_path / "a.json")] == ["no-videos"]


def test_images_are_found_or_named(sound, tmp_path):
    path = damaged(sound, tmp_path, lambda raw: None)
    assert open_dataset(path).images == tmp_path / "JPEGImages"
    (tmp_path / "JPEGImages").rename(tmp_path / "frames")
    assert open_dataset(path).images is None and "not looked at" in open_dataset(path).summary
    assert found(path) == []
    assert open_dataset(path, images=tmp_path / "frames").images == tmp_path / "frames"
    elsewhere = list(find_faults(open_dataset(path, images=tmp_path)))
    assert [fault.kind for fault in elsewhere] == ["image-missing"] * 8


def test_damage_in_the_middle_of_an_image_is_found_by_decoding(sound, tmp_path):
    def tear(raw: dict, images: Path) -> None:
        path = images / "clip_00001/00002.jpg"
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] + data[-2:])       # the end is there, half of the pixels are not

    path = damaged(sound, tmp_path, tear)
    assert found(path) == []
    assert places(found(path, decode=True)) == [("image-damaged", (2, None, 2))]


@pytest.mark.parametrize(("tolerance", "num_faults"), [
    pytest.param(Tolerance(), 1, id="2 pixels"), pytest.param(Tolerance(box_px=5), 0, id="5 pixels"),
])  # fmt: skip
def test_tolerance(tolerance, num_faults, sound, tmp_path):
    def move(raw: dict) -> None:
        raw["annotations"][0]["bboxes"][0][1] += 5

    assert len(found(damaged(sound, tmp_path, move), tolerance=tolerance)) == num_faults


def test_a_tolerance_below_zero():
    with pytest.raises(ConfigError, match="box px -1.0: expected a number from 0 up"):
        Tolerance(box_px=-1.0)


@pytest.mark.parametrize(("layout", "kinds"), [
    pytest.param("youtube-vis", [], id="youtube-vis"), pytest.param("ovis", ["structure"] * 10, id="ovis"),
])  # fmt: skip
def test_forced_layout(layout, kinds, sound):
    assert [fault.kind for fault in find_faults(open_dataset(sound, layout))] == kinds


@pytest.mark.parametrize(("content", "message"), [
    pytest.param(b"", "is not valid JSON", id="empty"),
    pytest.param(b'{"videos": [{"id": 1, "wid', "Was it cut short?", id="cut"),
    pytest.param(b"\xff\xfe\xff", "is not valid JSON", id="bytes"),
    pytest.param(b"[" * 200_000, "is not valid JSON", id="nested without end"),
    pytest.param(b'{"videos": [' + b"9" * 5000 + b"]}", "is not valid JSON", id="a number of 5000 digits"),
    pytest.param(b"[]", "maskstream evaluate", id="results"),
    pytest.param(b"3", "holds 3; expected an annotation JSON", id="a number"),
    pytest.param(b'{"images": [], "annotations": []}', "an object without a list of videos", id="COCO stills"),
])  # fmt: skip
def test_what_cannot_be_read_at_all(content, message, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DatasetError, match="a.json") as caught:
        open_dataset(tmp_path / "a.json")
    assert message in str(caught.value)


@pytest.mark.parametrize(("path", "how", "message"), [
    pytest.param("no.json", {}, "does not exist", id="no file"),
    pytest.param("", {}, "has no label maps", id="a folder of something else"),
    pytest.param("", {"layout": "ovis"}, "is a folder; layout ovis means an annotation JSON", id="layout of files"),
    pytest.param("a.json", {"layout": "davis"}, "is a file; layout davis means a DAVIS folder", id="layout of folders"),
    pytest.param("a.json", {"images": "nowhere"}, "nowhere: is no folder", id="no folder of images"),
])  # fmt: skip
def test_what_is_not_there(path, how, message, tmp_path):
    (tmp_path / "a.json").write_text('{"videos": []}')
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path / path, **how)


def test_a_report_counts_all_and_keeps_the_first(sound, tmp_path):
    path = damaged(sound, tmp_path, put("annotations", 1, "bboxes", [None] * 4))
    report = Report(keep=2)
    for fault in found(path):
        report.add(fault)
    assert report.counts == {"mask-without-box": 4} and report.total("error") == 4 and report.total("warning") == 0
    assert [fault.frame for fault in report.first["mask-without-box"]] == [0, 1]


def test_real_annotations(media):
    """Clean but for the ids of their categories, which are not 1..K as the set's own description has them."""
    faults = found(media / "annotated/instances.json")
    assert [fault.kind for fault in faults] == ["category-gaps"]


def test_real_broken_frames(media, tmp_path):
    names = [f"{number:05d}.jpg" for number in range(9)]
    video = {"id": 1, "width": 640, "height": 360, "length": 9, "file_names": names}
    (tmp_path / "a.json").write_text(json.dumps({"videos": [video], "categories": []}))
    dataset = open_dataset(tmp_path / "a.json", images=media / "broken/frames")
    kinds = {fault.frame: fault.kind for fault in find_faults(dataset)}
    sizes = {frame for frame, kind in kinds.items() if kind == "image-size"}
    assert kinds[1] == "image-damaged" and kinds[8] == "image-unreadable"
    assert 2 in sizes | {0} and 5 in sizes | {0}


WEIRD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(min_value=2**31), st.floats(), st.text(max_size=5),
    st.lists(st.integers(-3, 9), max_size=5), st.just({}), st.just({"size": [64, 96], "counts": "0"}),
    st.just([[1, 2, 3, 4, 5, 6]]), st.lists(st.none(), min_size=4, max_size=4),
    st.just([[[[[[1]]]]]]), st.just({"size": [[1], 2], "counts": [[1], 2]}),
)  # fmt: skip


def mutate(raw: dict, data: st.DataObject) -> None:
    """Go down from the top at random and change, remove, double or empty what is there."""
    value = raw
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        inner = value[key]
        if isinstance(inner, (dict, list)) and inner and data.draw(st.integers(0, 9)) > 1:
            value = inner
            continue
        action = data.draw(st.sampled_from(["put", "put", "remove", "double"]))
        if action == "remove":
            del value[key]
        elif action == "double" and isinstance(value, list):
            value.append(copy.deepcopy(inner))
        else:
            value[key] = copy.deepcopy(data.draw(WEIRD))      # some are one object in all examples
        return


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_damage_never_crashes_and_is_repaired(data, sound, tmp_path_factory):
    raw = json.loads(sound.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        mutate(raw, data)
    path = tmp_path_factory.mktemp("mutated") / "a.json"
    path.write_text(json.dumps(raw))
    images = data.draw(st.sampled_from([None, sound.parent / "JPEGImages"]))
    try:
        dataset = open_dataset(path, images=images)
        report = Report(keep=100)
        for fault in find_faults(dataset):
            assert str(fault).isprintable()
            json.dumps(fault.as_json(), allow_nan=False)
            report.add(fault)
        fixed = fix_dataset(dataset)
    except DatasetError as error:
        assert str(path) in str(error)
        return
    path.write_text(json.dumps(fixed.raw, allow_nan=False))
    assert [f for f in find_faults(JsonDataset(path, fixed.raw, dataset.layout, images)) if f.severity == "error"] == []
    again = read_dataset(path, image_root=images)
    for annotation in again.annotations:
        again.masks(annotation)
    if not report.total("error"):
        assert fixed.repairs == () and json.loads(json.dumps(fixed.raw)) == json.loads(json.dumps(raw))
