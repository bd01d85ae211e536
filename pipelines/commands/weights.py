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
  detectron2-imagenet   ImageNet ResNets of Caffe / MSRA (R-50.pkl), the backbone alone
  torchvision           ImageNet ResNets of torchvision, the backbone alone
  dla34-imagenet        ImageNet DLA-34, the backbone alone

Every tensor of either side is accounted for: used, fresh, missing, unused. A needed one that is missing, or of another
shape, is an error, and no file is written. Weights with fresh parts serve as a start for training, not for `run`.
Nothing of SRC is executed. The training identities' proxies are left out, unless --keep-proxies asks for them."""


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    raw = argparse.RawDescriptionHelpFormatter
    text = "turn a released checkpoint into weights of a network here"
    make = actions.add_parser("import", help=text, description=IMPORT, epilog=EXIT_CODES, formatter_class=raw)
    add = make.add_argument
    add("source", metavar="SRC", type=Path, help="the release's file: .pth, .pt, .bin, .pkl or .safetensors")
    add("--release", required=True, metavar="NAME", help="whose weights these are (see above)")
    add("--network", required=True, metavar="FILE", help="the network they are for, a file of configs/networks")
    add("--out", required=True, metavar="DST", type=Path, help="where the weights go, a .safetensors file")
    add("--classes", metavar="NAMES", help="youtube-vis-2019, youtube-vis-2021, ovis, coco, or a text file, one a line")
    add("--keep-proxies", action="store_true", help="keep the proxies of the release's training identities")
    add("--adapt-input", action="store_true", help="rewrite the first convolution for this network's pixels")
    add("--verbose", action="store_true", help="tell every tensor, and where it came from")
    add_debug(make)
    make.set_defaults(command=_import)
    text = "what a file of weights holds, ours or a release's; nothing in it is executed"
    show = actions.add_parser("show", help=text, description=text, epilog=EXIT_CODES, formatter_class=raw)
    show.add_argument("source", metavar="FILE", type=Path, help=".safetensors, .pth, .pt, .bin or .pkl")
    show.add_argument("--keys", action="store_true", help="tell every tensor")
    add_debug(show)
    show.set_defaults(command=_show)


def _import(args: argparse.Namespace) -> int:
    from pipelines.weights import import_release, save_import
    from pipelines.weights_show import print_import, print_saved

    done = import_release(args.source, args.release, args.network, args.adapt_input)
    print_import(done, args.verbose)
    names = save_import(done, args.out, args.classes, args.keep_proxies)
    print_saved(done, args.out, names, args.keep_proxies)
    return 0


def _show(args: argparse.Namespace) -> int:
    from pipelines.weights_show import print_weights

    print_weights(args.source, args.keys)
    return 0
