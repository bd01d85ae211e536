"""`maskstream dataset convert`: annotated videos from one format to another."""

from __future__ import annotations

import argparse
from pathlib import Path

from operators.errors import ConfigError
from pipelines.commands.shared import EXIT_CODES, counting

HELP = "YouTube-VIS, OVIS, DAVIS, MOTS, COCO, Open Images: from one to another"
DESCRIPTION = """Convert annotated videos between
  youtube-vis  a JSON    YouTube-VIS 2019 and 2021
  ovis         a JSON    the same with occlusion labels
  davis        a folder  Annotations_unsupervised/480p/VIDEO/FRAME.png, values 1, 2, .. the objects
  mots         a folder  instances_txt/VIDEO.txt, a line a mask, and evaluate_mots.seqmap
  coco         a JSON    instances of stills; read, each is a video of one frame, or of --frames
and from
  open-images  a CSV     train-annotations-object-segmentation.csv; class-descriptions-boxable.csv, folders of masks
                         and train/ with the images beside it. Images that are not there are left out

What the other format cannot hold is counted and told at the end: classes in DAVIS and MOTS, tracks in COCO, overlap in
DAVIS (where masks overlap the smaller one of the frame is on top). The output is there as a whole or not at all; a
folder must be new, a JSON replaces one of its name, and the input is never touched."""
EPILOG = """
examples:
  maskstream dataset convert train.json davis/ --from youtube-vis --to davis --images link
  maskstream dataset convert DAVIS/ val.json --from davis --to youtube-vis --subset val
  maskstream dataset convert mots/ train.json --from mots --to youtube-vis --classes 1=car,2=pedestrian
  maskstream dataset convert instances_train2017.json stills.json --from coco --to youtube-vis --frames 2
  maskstream dataset convert train-annotations-object-segmentation.csv open.json --from open-images --to coco --mapped
""" + EXIT_CODES
NAMES = ("youtube-vis", "ovis", "davis", "mots", "coco")


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="IN", help="the dataset: a JSON, a folder or a CSV")
    add("out", metavar="OUT", help="a JSON or a new folder")
    add("--from", dest="source_format", required=True, choices=(*NAMES, "open-images"), help="what IN is")
    add("--to", dest="target_format", required=True, choices=NAMES, help="what OUT is to be")
    add("--images", choices=("none", "link", "copy"), default="none",
        help="take the images along, into JPEGImages/ or the folder of the format (default: %(default)s)")
    add("--image-root", type=Path, metavar="DIR", help="where the images of IN lie (default: looked for beside it)")
    add("--subset", metavar="NAME", help="of DAVIS: the sequences of ImageSets/*/NAME.txt alone")
    add("--frames", type=int, default=1, metavar="N", help="of COCO: frames a still becomes (default: %(default)s)")
    add("--mapped", action="store_true",
        help="of Open Images: only classes that stand for one of YouTube-VIS 2019, as training takes them")
    add("--classes", default="", metavar="1=car,...", help="of MOTS: the names of its classes")
    add("--renumber", action="store_true", help="to DAVIS: frames 00000 and on, whatever the images are called")
    add("--mots-ids", choices=("annotation", "class"), default="annotation",
        help="to MOTS: ids of annotations, or class * 1000 + number (default: %(default)s)")  # fmt: skip


def execute(args: argparse.Namespace) -> int:
    from operators.datasets.convert import ConvertOptions, convert
    from operators.replacing import check_file, check_folder

    (check_folder if args.target_format in ("davis", "mots") else check_file)(args.out, "OUT")
    options = ConvertOptions(
        images=args.images, image_root=args.image_root, subset=args.subset, frames=args.frames,
        mapped=args.mapped, class_names=class_names(args.classes) or None, renumber=args.renumber,
        mots_ids=args.mots_ids,
    )  # fmt: skip
    with counting("videos") as progress:
        done = convert(args.source, args.out, args.source_format, args.target_format, options, progress)
    print(f"{args.out}: {done.videos:,} videos, {done.frames:,} frames, {done.tracks:,} tracks, {done.masks:,} masks")
    for note in done.notes:
        print(f"  {note}")
    return 1 if done.missing_images else 0


def class_names(text: str) -> dict[int, str]:
    """'1=car,2=pedestrian' -> {1: "car", 2: "pedestrian"}; '' -> {}. Raises ConfigError naming the part."""
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        number, equals, name = part.partition("=")
        if not equals or not number.strip().isdecimal() or len(number) > 9 or not name.strip():
            raise ConfigError(f"--classes {text}: {part!r} is none; expected NUMBER=NAME, as in 1=car,2=pedestrian.")
        found[int(number)] = name.strip()
    return found
