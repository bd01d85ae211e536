"""Frames per second of a network, plain and fused, and what each part takes.

    python -m benchmarks.network [--network configs/networks/crossvis_r50.yaml] [--size 360x640] [--instances 10]
                                 [--repeats 15] [--threads 2] [--dtype auto] [--compile] [--device auto]
                                 [--overlap 1]

Needs no weights: they are random, from a seed, and so are the frames; the score threshold is then set so that about
`--instances` are found. Both forms run the stages of the graph on the same frames, from network input to run lengths
of twice the size, in turns, so that a busy machine slows both alike. Printed are medians in Markdown, with the machine,
the versions and the date beside them. `--form fused` (or plain) runs one form alone, for a profiler.

Of a network that sees clips (CiCo, and its frame-by-frame baselines) a turn is a clip. Its frames/s are those that are
new in it, each once; beside them stands what comes of counting all frames of every clip, as the authors do.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.clip_runner import ClipRunner
from models import NETWORKS
from models.fused import InferenceConfig, inference_form
from operators.association import Associate
from operators.detectors import DETECTORS
from operators.masks import EncodeMasks
from operators.matching import AssociateConfig
from operators.network import Backbone, BatchConfig, Heads
from operators.records import FrameInfo, Image
from pipelines.networks import NetworkSpec, read_network

FRAMES = 4
"""Different pictures, shown round and round."""
WARM_UP = 2
"""Frames of each form before any is timed: oneDNN makes its kernels on the first."""
HALVINGS = 20
"""Of the range of score thresholds, 0 to 1, until about as many instances are found as asked for."""
PARTS = {
    "backbone": ("backbone",),
    "pyramid": ("fpn",),
    "class tower": ("fcos.class_tower", "clip_heads.class_tower"),
    "box tower": ("fcos.box_tower", "clip_heads.box_tower"),
    "identity tower": ("embedding.tower",),
    "track tower": ("clip_heads.track_tower",),
    "what hangs on the towers": (
        "fcos.class_logits", "fcos.distances", "fcos.centerness", "controller", "embedding.project",
        "clip_heads.class_logits", "clip_heads.boxes", "clip_heads.centerness", "clip_heads.mask_parameters",
        "clip_heads.embeddings",
    ),
    "mask branch": ("mask_branch", "prototypes"),
}  # fmt: skip
"""Name -> modules of a network; those that it does not have are left out."""
REST = "detection, suppression and the rest of the heads"
WHOLE = "whole frame"
MASKS, MERGED = "masks of the instances", "levels merged for masks"
OUTSIDE = {"backbone", "pyramid", MERGED, "association", "tracks", "run lengths"}
"""Parts that are not of the heads."""


class Clock:
    """Seconds per part of one frame; what a GPU still works on is waited for at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begin = self._now()
        yield
        self.seconds[name] += self._now() - begin

    def watch(self, network: nn.Module, root: nn.Module) -> None:
        """Time the modules of PARTS under `root`, and what makes the masks of instances."""
        modules = dict(root.named_modules())
        for name, paths in PARTS.items():
            for module in (modules[path] for path in paths if path in modules):
                self._watch_call(module, "forward", name)
        for owner, method, name in (
            (network, "mask_logits", MASKS), (network, "paint", MASKS),
            (getattr(root, "prototypes", None), "merge", MERGED),
        ):  # fmt: skip
            if hasattr(owner, method):
                self._watch_call(owner, method, name)

    def _watch_call(self, owner: nn.Module, method: str, name: str) -> None:
        function = getattr(owner, method)

        def timed(*args: Any, **settings: Any) -> Any:
            with self.part(name):
                return function(*args, **settings)

        setattr(owner, method, timed)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class Runner:
    """One form of a network of single frames in the stages of a graph."""

    whole, seen, new = WHOLE, 1, 1

    def __init__(self, spec: NetworkSpec, network: nn.Module, device: torch.device, clock: Clock) -> None:
        self.clock = clock
        batch = BatchConfig(batch=1)
        self.backbone = Backbone(network, batch, device)
        self.heads = Heads(network, batch, DETECTORS[spec.name].of(spec.detect), device)
        self.associate, self.encode = Associate(AssociateConfig(), spec.association), EncodeMasks()
        self.associate.open("benchmark")
        self.shown = 0

    def __call__(self, images: list[Image]) -> tuple[dict[str, float], int]:
        """One frame -> seconds of each part and of the whole, and how many instances were found."""
        self.clock.seconds.clear()
        (image,) = images
        record = replace(image, info=replace(image.info, index=self.shown))
        self.shown += 1
        with self.clock.part(WHOLE):
            features = self.backbone([record])
            with self.clock.part("heads"):
                found = self.heads(features)
            with self.clock.part("association"):
                tracked = self.associate(found)
            with self.clock.part("run lengths"):
                self.encode(tracked)
        return dict(self.clock.seconds), len(found[0].detections)


AnyRunner = Runner | ClipRunner


def make_runner(
    spec: NetworkSpec, network: nn.Module, device: torch.device, overlap: int | None = None
) -> AnyRunner:
    """One form of the network in the stages of its kind. Raises ValueError for an overlap that leaves no new frame, or
    is of no clips."""
    clock = Clock(device)
    if not getattr(network, "compiled", False):                 # a graph has no parts to look into
        clock.watch(network, getattr(network, "network", network))
    if DETECTORS[spec.name].clips:
        return ClipRunner(spec, network, device, clock, overlap)
    if overlap is not None:
        raise ValueError(f"--overlap is of networks that see clips; '{spec.name}' sees single frames. Leave it out.")
    return Runner(spec, network, device, clock)


def _parts(seconds: dict[str, float], whole: str) -> dict[str, float]:
    """What the heads took beyond their named parts, in place of what they took."""
    heads = seconds.pop("heads")
    return {**seconds, REST: heads - sum(v for name, v in seconds.items() if name not in OUTSIDE | {whole})}


def random_network(spec: NetworkSpec, seed: int = 0) -> nn.Module:
    """Weights that keep activations of one size, so that heads say something else at every place."""
    generator = torch.Generator().manual_seed(seed)
    network = NETWORKS[spec.name][0](spec.config)
    with torch.no_grad():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            if value.dim() > 1:
                value.normal_(0, value[0].numel() ** -0.5, generator=generator)
            elif name.endswith(("weight", "running_var", "scales")):
                value.uniform_(0.8, 1.2, generator=generator)
            elif name.endswith(("bias", "running_mean")):
                value.normal_(0, 0.1, generator=generator)
    return network.eval()


def random_frames(size: tuple[int, int], divisor: int, seed: int = 0) -> list[Image]:
    """Smooth noise, as resized from frames of twice the size."""
    generator = torch.Generator().manual_seed(seed)
    h, w = size
    padded = [-(-side // divisor) * divisor for side in size]
    coarse = torch.randn(FRAMES, 3, h // 20 + 2, w // 20 + 2, generator=generator)
    pixels = torch.zeros(FRAMES, 3, *padded)
    pixels[:, :, :h, :w] = F.interpolate(coarse, size=size, mode="bicubic")
    return [Image(FrameInfo("benchmark", i, 0.0, 2 * h, 2 * w), pixels[i], size) for i in range(FRAMES)]


def with_instances(
    spec: NetworkSpec, network: nn.Module, frames: list[Image], wanted: int, device: torch.device,
    say: Callable[[str], None],
) -> Any:  # fmt: skip
    """Settings of the detector with a score threshold at which about `wanted` instances are found in the first frame,
    or clip."""
    clips = DETECTORS[spec.name].clips
    seen = [frames[i % len(frames)].pixels for i in range(spec.config.clip_length if clips else 1)]
    say("first pass, to find a score threshold")
    with torch.inference_mode():
        dense = network.heads(network.features(torch.stack(seen).to(device)))

        def count(min_score: float) -> int:
            find = DETECTORS[spec.name].of(replace(spec.detect, min_score=min_score))
            return len(find(network, dense, 0) if clips else find(network, dense, 0, frames[0].size))

        low, high = 0.0, 1.0
        for step in range(HALVINGS):
            say(f"score threshold, {step + 1} of {HALVINGS}")
            middle = (low + high) / 2
            low, high = (middle, high) if count(middle) > wanted else (low, middle)
    return replace(spec.detect, min_score=high)


def measure(
    runners: dict[str, AnyRunner], frames: list[Image], repeats: int, say: Callable[[str], None]
) -> tuple[dict[str, list[dict[str, float]]], list[int]]:
    """The forms in turns -> of each, the seconds of every part in each turn; and the instances of the first form."""
    results: dict[str, list[dict[str, float]]] = {form: [] for form in runners}
    found: list[int] = []
    for turn in range(WARM_UP + repeats):
        say(f"turn {turn + 1} of {WARM_UP + repeats}" + (", warming up" if turn < WARM_UP else ""))
        for form, runner in runners.items():
            seconds, instances = runner([frames[(turn * runner.new + i) % len(frames)] for i in range(runner.new)])
            if turn >= WARM_UP:
                results[form].append(_parts(seconds, runner.whole))
                found += [instances] if form == next(iter(runners)) else []
    return results, found


def table(results: dict[str, list[dict[str, float]]], whole: str = WHOLE, new: int = 1, seen: int = 1) -> str:
    """Markdown: a row per part with the median milliseconds of each form and its share; the ratio where there are two,
    the median of the turns' own. A turn has `new` frames; the network sees `seen`."""
    forms = list(results)
    names = list(dict.fromkeys(name for turns in results.values() for turn in turns for name in turn if name != whole))
    wholes = {form: statistics.median(turn[whole] for turn in turns) for form, turns in results.items()}
    heads = "".join(f" {form}, ms | share |" for form in forms) + (" ratio |" if len(forms) == 2 else "")
    lines = [f"| part |{heads}", "|---|" + "---:|" * (heads.count("|"))]
    for name in [*names, whole]:
        cells = []
        for form in forms:
            value = statistics.median(turn.get(name, 0.0) for turn in results[form])
            cells += [f"{1000 * value:.1f}", f"{value / wholes[form]:.0%}"]
        if len(forms) == 2:
            pairs = [(a.get(name, 0.0), b.get(name, 0.0)) for a, b in zip(*results.values(), strict=True)]
            ratios = [a / b for a, b in pairs if b > 0]
            cells.append(f"{statistics.median(ratios):.2f}" if ratios else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    told = [f"{form}: {_rate(new / s)} frames/s"
            + (f" ({_rate(seen / s)} counting all {seen} of a clip)" if seen > 1 else "")
            for form, s in wholes.items()]  # fmt: skip
    return "\n".join([*lines, "", "; ".join(told)])


def _rate(per_second: float) -> str:
    return f"{per_second:.2f}" if per_second >= 1 else f"{per_second:.3g}"


def processor() -> str:
    """The name of this machine's CPU, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="configs/networks/crossvis_r50.yaml")
    parser.add_argument("--size", default="360x640", help="height x width of the resized frame, before padding")
    parser.add_argument("--instances", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--compile", action="store_true", help="on a GPU: CUDA graphs")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--form", default="both", choices=("both", "plain", "fused"))
    parser.add_argument("--overlap", type=int, help="of networks that see clips: frames shared with the next clip")
    args = parser.parse_args(words)
    try:
        args.size = tuple(int(side) for side in args.size.split("x"))
    except ValueError:
        parser.error(f"--size is '{args.size}', expected height x width, as in 360x640")
    if len(args.size) != 2 or not all(32 <= side <= 4096 for side in args.size):
        parser.error("--size: expected two sides of 32 to 4096 pixels, as in 360x640")
    if args.repeats < 1 or args.threads < 1 or not 0 <= args.instances <= 100:
        parser.error("expected at least one repeat and one thread, and 0 to 100 instances")
    return args


def say(text: str) -> None:
    """How far it is, on one line that stays where it is."""
    print(f"\r{text:<50}", end="", file=sys.stderr, flush=True)


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    torch.set_num_threads(args.threads)
    cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if cuda else "cpu")
    spec = read_network(args.network)
    say("weights, from a seed")
    frames = random_frames(args.size, spec.config.input.divisor)
    plain = random_network(spec).to(device)
    spec = replace(spec, detect=with_instances(spec, plain, frames, args.instances, device, say))
    fused = inference_form(plain, InferenceConfig(form="fused", dtype=args.dtype, compile=args.compile))
    forms = {"plain, float32": plain, fused.describe(): fused}
    if args.form != "both":
        forms = {name: network for name, network in forms.items() if name.startswith(args.form)}
    try:
        runners = {name: make_runner(spec, network, device, args.overlap) for name, network in forms.items()}
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    one = next(iter(runners.values()))
    results, found = measure(runners, frames, args.repeats, say)
    print(file=sys.stderr)
    machine = torch.cuda.get_device_name(device) if cuda else f"{processor()}, {args.threads} threads"
    print(
        f"{args.network}, {args.size[0]}x{args.size[1]}, {statistics.median(found):.0f} instances, "
        f"{f'clips of {one.seen} frames, {one.new} of them new, ' if one.seen > 1 else ''}medians of "
        f"{args.repeats} turns; {datetime.date.today()}; {machine}, Python {platform.python_version()}, "
        f"torch {torch.__version__}\n\n"
        f"{table(results, one.whole, one.new, one.seen)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
