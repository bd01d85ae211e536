"""`maskstream weights import`: a released checkpoint -> weights of ours, or one error that says what does not fit.

In:     a file of a release, the release's name, and the network's file of settings
Out:    `Imported`, which the terminal shows; then a safetensors file, unless something needed is missing
Limits: nothing of a file is executed; a file with parts that inference reads and the release does not have says so in
        its metadata (`fresh`), and serves as a start for training alone
Source: CrossVIS specification 6. Rule 4 lets inference drop the proxies: they are left out, unless asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import NETWORKS
from models.importers import RELEASES, Release, Renamed, Report, fit, guess
from models.importers.pixels import FIRST_CONVOLUTIONS, adapt_first_convolution
from models.inputs import InputConfig
from operators.class_names import CLASS_NAMES
from operators.errors import CheckpointError, ConfigError, did_you_mean
from operators.pickles import read_released
from operators.replacing import check_file, writing
from operators.weights import save_weights
from pipelines.networks import NetworkSpec, as_plain, read_network
from pipelines.transplant import OPTION, OURS, TRANSPLANTED, ClassRows, class_rows, transplant

PROXIES = "proxies."
RELEASED_IDENTITIES = 3774
"""Of YouTube-VIS 2019: how many proxies stand in the account where the file has none."""
MAX_IDENTITIES = 1_000_000
USUAL_CLASSES = {
    ("crossvis", 40): "youtube-vis-2019",
    ("crossvis", 25): "ovis",
    ("masktrack-rcnn", 40): "youtube-vis-2019",
    ("masktrack-rcnn", 25): "ovis",
    ("adelaidet-condinst", 80): "coco",
    ("iai", 25): "ovis",                        # 40 are those of either YouTube-VIS
    ("iai-coco", 80): "coco",
    ("mmdetection-condinst", 80): "coco",
    ("centermask2", 80): "coco",
}
"""(release, classes) -> the dataset whose names they have, unless told otherwise."""
MAX_NAMES_BYTES = 1 << 20


@dataclass(frozen=True)
class Imported:
    """A released file held against a network. Complete or not: `report` tells."""

    source: Path
    release: str
    spec: NetworkSpec
    state: dict[str, Tensor]
    report: Report
    guessed: str | None
    """The release whose names the file has."""
    rows: ClassRows | None = None
    """Of classes that were copied one by one."""

    @property
    def untrained(self) -> tuple[str, ...]:
        """Parts that inference reads and that are, as a whole or in rows, as freshly initialised."""
        fresh = (*self.report.fresh, *self.report.partial)
        return tuple(n for n in fresh if not n.startswith(RELEASES[self.release].allowed.unread))

    @property
    def has_proxies(self) -> bool:
        """Of the identities that the release was trained on."""
        return any(name.startswith(PROXIES) for name in self.report.used)


def import_release(
    source: Path, release: str, network: str, adapt_input: bool = False, transplant_classes: bool = False
) -> Imported:
    """Read `source` as a file of `release` for the network of the file `network`.

    `adapt_input` writes the first convolution anew where the network's pixels differ from the release's;
    `transplant_classes` copies the rows of classes that COCO shares with YouTube-VIS 2019 (transplant.py).
    Raises CheckpointError for a file that cannot be read or was trained for other settings, ConfigError for an unknown
    release or network.
    """
    if release not in RELEASES:
        raise ConfigError(f"--release {release}: no such release.{did_you_mean(release, RELEASES)}")
    chosen, spec = RELEASES[release], read_network(network)
    rows = class_rows(release, spec) if transplant_classes else None
    file = read_released(source)
    if release == "detectron2-imagenet" and "torchvision" in file.others.get("__author__", ""):
        raise CheckpointError(f"{source}: these are torchvision's weights, handed on. Use --release torchvision.")
    try:
        renamed = chosen.rename(file.state)
    except ValueError as error:
        raise CheckpointError(f"{source}, as {release}: {error}.") from error
    guessed = guess(file.state)
    if guessed not in (None, release) and 2 * renamed.known < len(file.state):
        raise CheckpointError(f"{source}: its names are those of --release {guessed}, not of {release}.")
    _check_settings(source, chosen, renamed, spec)
    renamed = _with_pixels(source, chosen, renamed, spec, adapt_input)
    with torch.random.fork_rng(devices=()):     # fresh parts are the same for everybody
        torch.manual_seed(0)
        fresh = NETWORKS[spec.name][0](spec.config, _num_identities(source, renamed))
    own = fresh.state_dict()
    if rows is not None:
        renamed = transplant(source, release, rows, renamed, own)
    state, report = fit(chosen.adapt(renamed, own), own, chosen.allowed)
    return Imported(source, release, spec, state, report, guessed, rows)


def save_import(done: Imported, out: Path, classes: str | None = None, keep_proxies: bool = False) -> tuple[str, ...]:
    """Write the weights, atomically; returns their class names.

    Raises CheckpointError, and writes nothing, when a needed tensor is missing or does not fit; ConfigError when the
    names of the classes are not known.
    """
    _check_complete(done)
    check_out(done.source, out)
    names = class_names(classes, done)
    origin = {
        "release": done.release,
        "source": done.source.name,
        "source_sha256": _sha256(done.source),
    }
    if done.untrained:
        origin["fresh"] = json.dumps(done.untrained)
    if done.rows is not None:
        origin[TRANSPLANTED] = json.dumps(done.rows.copied)
    kept = keep_proxies and done.has_proxies
    state = {name: value for name, value in done.state.items() if kept or not name.startswith(PROXIES)}
    with writing(out, "--out"):
        save_weights(out, state, done.spec.name, as_plain(done.spec.config), names, **origin)
    return names


def check_out(source: Path, out: Path) -> None:
    """Raises ConfigError where an import cannot be written to `out`: the source itself, another kind of file, or a
    place where no file can be made."""
    if out.suffix != ".safetensors" or out.is_dir() or out.resolve() == source.resolve():
        raise ConfigError(f"--out {out}: expected another file than the source, whose name ends in .safetensors.")
    check_file(out, "--out")


def class_names(asked: str | None, done: Imported) -> tuple[str, ...]:
    """The names `asked` for: of a dataset, or in a text file, one a line. Without: those that the release was trained
    on; none where the class scores are fresh, since training will name its own. Rows that were copied have theirs."""
    if done.rows is not None:
        if asked not in (None, OURS):
            raise ConfigError(f"--classes {asked}: with {OPTION} the classes are those of {OURS}. Leave --classes out.")
        return done.rows.ours
    wanted = done.spec.config.num_classes
    if asked is None:
        if any("class_logits" in name for name in done.untrained):
            return ()
        if (done.release, wanted) not in USUAL_CLASSES:
            known = ", ".join(CLASS_NAMES)
            raise ConfigError(f"--classes: name the {wanted} classes: one of {known}, or a text file, one a line.")
        return CLASS_NAMES[USUAL_CLASSES[done.release, wanted]]
    names = CLASS_NAMES[asked] if asked in CLASS_NAMES else _names_from(asked)
    if len(names) != wanted:
        raise ConfigError(f"--classes {asked}: {len(names)} names, {done.spec.where} has num_classes {wanted}.")
    return names


def _names_from(asked: str) -> tuple[str, ...]:
    path = Path(asked).expanduser()
    if not path.is_file():
        raise ConfigError(f"--classes {asked}: neither a file nor a dataset.{did_you_mean(asked, CLASS_NAMES)}")
    if path.stat().st_size > MAX_NAMES_BYTES:
        raise ConfigError(f"--classes {asked}: more than {MAX_NAMES_BYTES} bytes; expected a name a line.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"--classes {asked}: not a text file in UTF-8: {error}.") from error
    return tuple(line.strip() for line in lines if line.strip())


# -------------------------------------------------------------------------------------------------------- what must fit


def _check_settings(source: Path, release: Release, renamed: Renamed, spec: NetworkSpec) -> None:
    """What no shape shows: the file's own settings, and those its release was trained with."""
    faults = []
    for place, value in {**release.expects, **renamed.told}.items():
        mine = _setting(spec.config, place)
        if mine is not None and mine != value:
            faults.append(f"model.{place} has to be {_yaml(value)}, it is {_yaml(mine)}")
    if faults:
        raise CheckpointError(f"{source}, as {release.what}: in {spec.where}, {'; '.join(faults)}.")


def _setting(config: Any, place: str) -> Any:
    for name in place.split("."):
        config = getattr(config, name, None)
    return config


def _with_pixels(source: Path, release: Release, renamed: Renamed, spec: NetworkSpec, adapt: bool) -> Renamed:
    """With a first convolution for the network's pixels; as it is where they are the release's."""
    theirs, ours = release.pixels, spec.config.input
    differing = [name for name in ("channel_order", "mean", "std") if not _close(theirs, ours, name)]
    if not differing:
        return renamed
    if not adapt:
        wanted = ", ".join(f"{name}: {_yaml(getattr(theirs, name))}" for name in differing)
        raise CheckpointError(
            f"{source}, as {release.what}, wants other pixels than {spec.where} gives. Set model.input to {{{wanted}}},"
            " or add --adapt-input, which rewrites the first convolution so that it gives the same from these pixels."
        )
    state = dict(renamed.state)
    for name in FIRST_CONVOLUTIONS:
        if name in state and state[name].dim() == 4 and state[name].shape[1] == 3:
            try:
                state[name] = adapt_first_convolution(state[name], theirs, ours)
            except ValueError as error:
                raise CheckpointError(f"{source}: --adapt-input, {spec.where}, model.input: {error}.") from error
    return replace(renamed, state=state)


def _close(theirs: InputConfig, ours: InputConfig, name: str) -> bool:
    a, b = getattr(theirs, name), getattr(ours, name)
    return a == b if isinstance(a, str) else all(math.isclose(x, y, abs_tol=0.05) for x, y in zip(a, b, strict=True))


def _yaml(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def _num_identities(source: Path, renamed: Renamed) -> int:
    proxies = renamed.state.get("proxies.proxies.weight")
    count = RELEASED_IDENTITIES if proxies is None or proxies.dim() != 2 else len(proxies)
    if not 3 <= count <= MAX_IDENTITIES:
        raise CheckpointError(f"{source}: proxies of {count} identities, expected 3 to {MAX_IDENTITIES}.")
    return count


def _check_complete(done: Imported) -> None:
    report = done.report
    if report.complete:
        return
    faults = [f"{name} is missing" for name in report.missing]
    faults += [f"{name}: {why}" for name, why in report.faulty.items()]
    shown = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
    other = done.guessed not in (None, done.release)
    hint = f" Its names are those of --release {done.guessed}." if other else ""
    raise CheckpointError(f"{done.source}, as {done.release}, does not fill {done.spec.where}: {shown}.{hint}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def settings_lines(config: Mapping[str, Any]) -> list[str]:
    """Settings as lines of YAML's flow style, one for each top-level key."""
    return [f"{name}: {json.dumps(value)}" for name, value in config.items()]


def part_sizes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Part of the network -> (tensors, numbers in them)."""
    sizes: dict[str, tuple[int, int]] = {}
    for name, value in state.items():
        part = name.partition(".")[0]
        tensors, numbers = sizes.get(part, (0, 0))
        sizes[part] = (tensors + 1, numbers + value.numel())
    return sizes
