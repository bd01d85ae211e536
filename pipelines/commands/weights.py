"""`maskstream weights`: released checkpoints become ours, and any file says what it holds."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines.commands.shared import EXIT_CODES, add_debug

HELP = "import released checkpoints, show what a file holds"
IMPORT = """Turn a released checkpoint into weights of a network here. NAME is one of
  crossvis              CrossVIS R-50 or R-101, the whole network
  adelaidet-condinst    CondInst on COCO; into CrossVIS it is where training begins
  masktrack-rcnn        MaskTrack R-CNN, the whole network
  mmdetection-mask-rcnn Mask R-CNN on COCO of MMDetection, where training of the two-stage networks begins
  iai                   IAI + CondInst R-50 or R-101, the whole network
  iai-coco              the CondInst on COCO that IAI's training begins with
  mmdetection-condinst  CondInst on COCO of MMDetection 3, for networks with fcos.tower_bias: true
  tltm                  TLTM R-50 or R-101, the whole network
  centermask2           CenterMask2 R-50 or R-101 on COCO; where training of CenterMask and TLTM begins
  cico                  CiCo, the whole network
  cico-coco             CiCo's form for stills on COCO; where its training on videos begins
  yolact                Yolact on COCO; grown in time it begins CiCo and FiFo
  detectron2-imagenet   ImageNet ResNets of Caffe / MSRA (R-50.pkl), the backbone alone
  torchvision           ImageNet ResNets of torchvision, the backbone alone
  dla34-imagenet        ImageNet DLA-34, the backbone alone
  swin-imagenet         ImageNet Swin, of its authors or of torchvision, the backbone alone

Every tensor of either side is accounted for: used, fresh, missing, unused. A needed one that is missing, or of another
shape, is an error, and no file is written. Weights with fresh parts serve as a start for training, not for `run`.
Nothing of SRC is executed. The training identities' proxies are left out, unless --keep-proxies asks for them.

Class scores of other classes than the network's begin anew. --transplant-classes keeps a part of centermask2's: the
rows of the 19 classes of COCO that YouTube-VIS 2019 has too (person, car as sedan, dog, ..), of scores and masks, are
copied to their places among the 40. The other 21 begin as in any network, the same for everybody. All are told."""
IMPORT_EPILOG = """
examples:
  maskstream weights import CrossVIS_R_50_1x.pth --release crossvis --network configs/networks/crossvis_r50.yaml \\
    --out weights/crossvis_r50.safetensors
  maskstream weights import centermask2-R-50.pth --release centermask2 --transplant-classes \\
    --network configs/networks/centermask_r50.yaml --out weights/centermask_r50_coco.safetensors
"""
SHOW = """Tell what a file of weights holds: of one of ours the network, its settings and classes, and where it comes
from; of a release its tensors, and whose names they have. Nothing in it is executed."""
SHOW_EPILOG = """
examples:
  maskstream weights show models/weights/tiny.safetensors
  maskstream weights show CrossVIS_R_50_1x.pth --keys          every tensor, by the name that the release gave it
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    raw = argparse.RawDescriptionHelpFormatter
    text = "turn a released checkpoint into weights of a network here"
    make = actions.add_parser("import", help=text, description=IMPORT, epilog=IMPORT_EPILOG + EXIT_CODES,
                              formatter_class=raw)                                                     # fmt: skip
    add = make.add_argument
    add("source", metavar="SRC", type=Path, help="the release's file: .pth, .pt, .bin, .pkl or .safetensors")
    add("--release", required=True, metavar="NAME", help="whose weights these are (see above)")
    add("--network", required=True, metavar="FILE", help="the network they are for, a file of configs/networks")
    add("--out", required=True, metavar="DST", type=Path, help="where the weights go, a .safetensors file")
    add("--classes", metavar="NAMES", help="youtube-vis-2019, youtube-vis-2021, ovis, coco, or a text file, one a line")
    add("--keep-proxies", action="store_true", help="keep the proxies of the release's training identities")
    add("--adapt-input", action="store_true", help="rewrite the first convolution for this network's pixels")
    add("--transplant-classes", action="store_true",
        help="of centermask2: copy the rows of the classes that COCO shares with YouTube-VIS 2019")    # fmt: skip
    add("--verbose", action="store_true", help="tell every tensor, and where it came from")
    add_debug(make)
    make.set_defaults(command=_import)
    text = "what a file of weights holds, ours or a release's; nothing in it is executed"
    show = actions.add_parser("show", help=text, description=SHOW, epilog=SHOW_EPILOG + EXIT_CODES, formatter_class=raw)
    show.add_argument("source", metavar="FILE", type=Path, help=".safetensors, .pth, .pt, .bin or .pkl")
    show.add_argument("--keys", action="store_true", help="tell every tensor")
    add_debug(show)
    show.set_defaults(command=_show)


def _import(args: argparse.Namespace) -> int:
    from pipelines.file_kinds import refuse_for_weights
    from pipelines.weights import check_out, import_release, save_import
    from pipelines.weights_show import print_import, print_saved

    refuse_for_weights(args.source)
    check_out(args.source, args.out)
    done = import_release(args.source, args.release, args.network, args.adapt_input, args.transplant_classes)
    print_import(done, args.verbose)
    names = save_import(done, args.out, args.classes, args.keep_proxies)
    print_saved(done, args.out, names, args.keep_proxies)
    return 0


def _show(args: argparse.Namespace) -> int:
    from pipelines.file_kinds import refuse_for_weights
    from pipelines.weights_show import print_weights

    refuse_for_weights(args.source)
    print_weights(args.source, args.keys)
    return 0
