"""Truth written as a YouTube-VIS 2019 / 2021 or OVIS JSON.

In:     a Truth of any format
Out:    OUT.json with every field of the format, masks as compressed RLE; with images, JPEGImages/ beside it
State:  none
Limits: of the annotations, those of one video are in memory
Source: CrossVIS specification 1.2
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from operators.datasets.files import ImageMode, ImagePlacer, new_folder, new_json, write_json
from operators.datasets.truth import Progress, TrackTruth, Truth, VideoTruth, relative_to


def write_youtube_vis(
    truth: Truth, out: Path, images: ImageMode = "none", *, occlusion: bool = False, progress: Progress | None = None
) -> None:
    """Write every video and track under their ids; with `occlusion` the labels of OVIS too, where there are any.

    Without images, their names are made relative to the folder of `out` where it holds them, else they stay relative
    to their own folder, which the notes name. Raises DatasetError for damaged input, ConfigError for an unusable `out`.
    """
    placer = ImagePlacer(images, truth.notes)
    with ExitStack() as stack:
        file = stack.enter_context(new_json(out))
        folder = stack.enter_context(new_folder(Path(out).parent / "JPEGImages")) if images != "none" else None
        prefix = "" if folder else image_prefix(truth, Path(out))
        videos: list[dict] = []

        def annotations() -> Iterator[dict]:
            for video in truth.each(progress):
                if folder:
                    for frame, name in enumerate(video.file_names):
                        placer.place(truth.image(video, frame), folder / name, f"video {video.id}, frame {frame}")
                videos.append(_video(video, prefix))
                for track in video.tracks:
                    if track.occlusion and not occlusion:
                        truth.notes.count("occlusion labels, which YouTube-VIS does not have, left out",
                                          f"annotation {track.id}", sum(map(bool, track.occlusion)))  # fmt: skip
                    yield _annotation(video, track, occlusion)

        write_json(file, {
            "info": {"description": f"{Path(truth.path).name}, converted by Maskstream", "version": "1"},
            "licenses": [],
            "categories": [{"id": c.id, "name": c.name, "supercategory": "object"} for c in truth.categories],
            "annotations": annotations(),
            "videos": iter(videos),                 # filled while the annotations are written
        })  # fmt: skip


def image_prefix(truth: Truth, out: Path) -> str:
    """What stands before the names of images so that they hold beside `out`: '' or a path that ends in '/'.

    Readers look beside a JSON, and in JPEGImages/ beside it. Images that lie elsewhere are named in the notes.
    """
    if truth.image_root is None:
        truth.notes.say("The images were not found; their names are written all the same. --image-root names their "
                        "folder.")  # fmt: skip
        return ""
    if relative_to(truth.image_root, out.parent / "JPEGImages") == ".":
        return ""
    inside = relative_to(truth.image_root, out.parent)
    if inside is None:
        truth.notes.say(f"The images stay in {truth.image_root}, which {out.name} does not lie above: name that folder "
                        f"with --image-root where they are needed, or take them along with --images link.")  # fmt: skip
    return "" if inside in (None, ".") else f"{inside}/"


def _video(video: VideoTruth, prefix: str) -> dict:
    return {
        "id": video.id, "width": video.width, "height": video.height, "length": video.length,
        "file_names": [prefix + name for name in video.file_names], "license": 0, "coco_url": "", "flickr_url": "",
        "date_captured": "",
    }  # fmt: skip


def _annotation(video: VideoTruth, track: TrackTruth, occlusion: bool) -> dict:
    entry = {
        "id": track.id, "video_id": video.id, "category_id": track.category_id, "iscrowd": int(track.iscrowd),
        "width": video.width, "height": video.height, "length": video.length, "segmentations": track.masks,
        "bboxes": track.bboxes, "areas": track.areas,
    }  # fmt: skip
    return entry | {"occlusion": track.occlusion} if occlusion and track.occlusion else entry
