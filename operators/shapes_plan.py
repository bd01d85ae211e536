"""The generated dataset: draw a scene that keeps what its settings promise.

In:     `ShapesConfig` and a random generator
Out:    `Scene` with its `Coverage`
State:  none; a scene that breaks a promise is thrown away and drawn anew
Limits: MAX_DRAWS scenes are drawn before settings count as impossible

What has to happen is planned, not waited for. Each object has a part to play:
    hidden   meets its coverer, centre on centre, at a whole frame in the middle of the clip
    coverer  a large full form above it, which passes slowly
    leaver   turns round just outside the frame, in the middle of the clip
    plain    wanders inside the frame
Twins are plain objects that copy the surface and the size of a hidden, leaving or plain one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from operators.errors import ConfigError
from operators.shapes_config import ShapesConfig
from operators.shapes_forms import CATEGORIES, COVERING, Look, backdrop, random_look
from operators.shapes_scene import Camera, Coverage, Mover, Scene, Swing, cover, keeps_promises

MAX_DRAWS = 200
"""Scenes drawn for one clip; the shipped presets need one or two."""

CANDIDATES = 5
"""Paths drawn for one object, of which the one that least crowds those already placed is kept."""

CAMERA_TURN = 1.5
"""Radians that the background turns, and share that it zooms, for each width that it moves."""


@dataclass(frozen=True)
class Part:
    """What one object is and does, before it has a path. Diameter in pixels."""

    role: str
    category: str
    look: Look
    diameter: float
    partner: int = -1
    """Of a coverer: index of the part it hides."""


def draw_scene(config: ShapesConfig, rng: np.random.Generator) -> tuple[Scene, Coverage]:
    """A scene that keeps every promise of `config`, with its id maps. ConfigError when MAX_DRAWS did not give one."""
    for _ in range(MAX_DRAWS):
        scene = _propose(config, rng)
        coverage = cover(scene)
        if keeps_promises(scene, coverage):
            return scene, coverage
    raise ConfigError(
        f"shapes: {MAX_DRAWS} random scenes of {config.min_objects} to {config.max_objects} objects, none of them with "
        f"{config.full_occlusions} full occlusions, {config.re_entries} re-entries and a visibility of "
        f"{config.min_visibility}. Lower one of these, or max_size, or raise num_frames."
    )


def _propose(config: ShapesConfig, rng: np.random.Generator) -> Scene:
    """A scene with the right objects, made to keep the promises; crowding may still break one."""
    camera, reach = _camera(config, rng)
    diagonal = float(np.hypot(config.width, config.height))
    side = int(np.ceil(diagonal * (1 + CAMERA_TURN * config.camera_motion) + 2 * reach)) + 4
    background = backdrop(rng, side, side, config.background_contrast)
    seen = np.asarray(background.resize((4, 4))).reshape(-1, 3).astype(np.float64)       # (16, 3)
    parts = _cast(config, rng, seen)
    movers: list[Mover] = []
    for part in parts:
        movers.append(_place(config, rng, part, movers))
    order = list(rng.permutation(len(parts)))
    for k, part in enumerate(parts):
        if part.role == "coverer":
            above, below = order.index(k), order.index(part.partner)
            if above < below:
                order[above], order[below] = order[below], order[above]
    return Scene(config, tuple(movers[k] for k in order), background, camera)


def _camera(config: ShapesConfig, rng: np.random.Generator) -> tuple[Camera, float]:
    """A smooth hand-held way, and the largest shift in pixels. Half a swing takes about the length of the clip."""

    def drift(amplitude: float, anchor: float = 0.0) -> Swing:
        omega = rng.uniform(0.7, 1.3) * np.pi / max(24, config.num_frames)
        return Swing(anchor, amplitude * rng.uniform(0.5, 1.0), omega, rng.uniform(-1, 1), config.num_frames / 2)

    reach = config.camera_motion * config.width
    turn = CAMERA_TURN * config.camera_motion / 2
    signs = rng.choice([-1.0, 1.0], size=4)
    x, y = drift(signs[0] * reach), drift(signs[1] * reach * 0.6)
    # a swing may lie up to 1.85 amplitudes from its anchor, so zooming stays within 1 -+ turn
    camera = Camera(x, y, drift(signs[2] * turn), drift(signs[3] * turn / 1.85, anchor=1.0))
    return camera, 2 * reach


def _cast(config: ShapesConfig, rng: np.random.Generator, seen: np.ndarray) -> list[Part]:
    """Who takes part: hidden ones first, each followed by its coverer, then leavers, plain ones and twins."""
    num = int(rng.integers(config.min_objects, config.max_objects + 1))
    pairs, leavers, twins = config.full_occlusions, config.re_entries, config.num_twins
    roles = ["hidden", "coverer"] * pairs + ["leaver"] * leavers
    roles += ["plain"] * (num - len(roles) - twins)
    covering = [COVERING[k] for k in rng.permutation(len(COVERING))]
    covering = [covering[k % len(covering)] for k in range(pairs)]
    fresh = [name for name in rng.permutation(CATEGORIES).tolist() if name not in covering]
    others = fresh[: max(0, config.min_classes - len(set(covering)))]
    others += rng.choice(CATEGORIES, size=max(0, len(roles) - pairs - len(others))).tolist()
    others = rng.permutation(others[: len(roles) - pairs]).tolist()
    parts: list[Part] = []
    for k, role in enumerate(roles):
        category = covering.pop() if role == "coverer" else others.pop()
        look = random_look(rng, seen)
        parts.append(Part(role, category, look, _diameter(config, rng, role), k - 1 if role == "coverer" else -1))
    originals = [parts[k] for k in rng.permutation(len(parts)) if parts[k].role != "coverer"]
    for k in range(twins):
        model = originals[k % len(originals)]
        parts.append(Part("plain", model.category, model.look, model.diameter * rng.uniform(0.95, 1.05)))
    return parts


def _diameter(config: ShapesConfig, rng: np.random.Generator, role: str) -> float:
    """Pixels. A coverer has to be much larger than what it hides; large plain objects would crowd the frame."""
    low, high = {"hidden": (0.0, 0.2), "coverer": (0.75, 1.0), "leaver": (0.0, 0.5), "plain": (0.0, 0.7)}[role]
    share = config.min_size + rng.uniform(low, high) * (config.max_size - config.min_size)
    return share * min(config.height, config.width)


def _place(config: ShapesConfig, rng: np.random.Generator, part: Part, movers: list[Mover]) -> Mover:
    """The least crowding of CANDIDATES paths that play the part."""
    partner = movers[part.partner] if part.role == "coverer" else None
    rivals = [mover for mover in movers if mover is not partner]
    candidates = [_candidate(config, rng, part, partner) for _ in range(CANDIDATES)]
    return min(candidates, key=lambda mover: _crowding(mover, rivals, config.num_frames))


def _candidate(config: ShapesConfig, rng: np.random.Generator, part: Part, partner: Mover | None) -> Mover:
    speed = config.speed * config.width * rng.uniform(0.6, 1.3)
    middle = float(round(rng.uniform(0.35, 0.65) * (config.num_frames - 1)))
    if partner is not None:
        x, y = _across(config, rng, part, partner, speed / 2)
        middle = partner.x.middle
    elif part.role == "leaver":
        x, y = _out_and_back(config, rng, part, speed, middle)
    else:
        x, y = _wander(config, rng, part, speed, middle)
    growth = config.scaling * rng.uniform(0.3, 1.0) * rng.choice([-1.0, 1.0]) * part.diameter
    return Mover(
        part.category, part.look, x, y,
        diameter=Swing(part.diameter, growth, rng.uniform(0.05, 0.2), 0.0, middle),
        angle=rng.uniform(0, 2 * np.pi),
        spin=np.radians(config.rotation) * rng.uniform(0.2, 1.0) * rng.choice([-1.0, 1.0]),
    )  # fmt: skip


def _wander(
    config: ShapesConfig, rng: np.random.Generator, part: Part, speed: float, middle: float
) -> tuple[Swing, Swing]:
    """Anywhere inside the frame; a part to be hidden is at full speed in the frame's middle at time `middle`."""
    direction = rng.uniform(0, 2 * np.pi)
    swings = []
    for size, share in ((config.width, np.cos(direction)), (config.height, np.sin(direction))):
        hidden = part.role == "hidden"
        low, high = _room(size, part.diameter)
        anchor = rng.uniform(0.3, 0.7) * size if hidden else rng.uniform(low, high)
        phase = rng.uniform(-0.5, 0.5) if hidden else rng.uniform(-np.pi / 2, np.pi / 2)
        swings.append(_swing(rng, anchor, (low, high), speed * share, phase, middle))
    return swings[0], swings[1]


def _across(
    config: ShapesConfig, rng: np.random.Generator, part: Part, partner: Mover, speed: float
) -> tuple[Swing, Swing]:
    """Over the partner's place at the partner's `middle`, in about the opposite direction."""
    swings = []
    direction = rng.uniform(-0.6, 0.6) + np.arctan2(
        -partner.y.amplitude * partner.y.omega, -partner.x.amplitude * partner.x.omega
    )
    for size, way, share in (
        (config.width, partner.x, np.cos(direction)), (config.height, partner.y, np.sin(direction)),
    ):  # fmt: skip
        room = _room(size, part.diameter)
        swings.append(_swing(rng, way.anchor, room, speed * share, rng.uniform(-0.5, 0.5), way.middle))
    return swings[0], swings[1]


def _out_and_back(
    config: ShapesConfig, rng: np.random.Generator, part: Part, speed: float, middle: float
) -> tuple[Swing, Swing]:
    """Turning outside one of the four edges at `middle`: far enough inside before and after to be seen wholly."""
    sizes = (config.width, config.height)
    axis, far = int(rng.integers(2)), bool(rng.integers(2))
    outside = part.diameter * (1 + config.scaling) / 2 + rng.uniform(0.01, 0.03) * config.width
    travel = outside + part.diameter * 0.6 + rng.uniform(0.05, 0.3) * sizes[axis]
    # 1 - cos(2.2) = 1.59: `travel` is done 2.2 radians after the turn, which the shorter half of the clip allows for
    amplitude = travel / 1.59
    omega = max(min(speed / amplitude, 0.25), 2.2 / max(1.0, min(middle, config.num_frames - 1 - middle)))
    leaving = Swing(
        sizes[axis] + outside if far else -outside, amplitude if far else -amplitude, omega, np.pi / 2, middle
    )
    other = sizes[1 - axis]
    low, high = _room(other, part.diameter)
    along = _swing(rng, rng.uniform(low, high), (low, high), speed * 0.6, rng.uniform(-1.5, 1.5), middle)
    return (leaving, along) if axis == 0 else (along, leaving)


def _room(size: int, diameter: float) -> tuple[float, float]:
    """Where a centre may go along a side of `size` pixels: a part of a wandering object may stick out."""
    margin = min(0.4 * diameter, 0.45 * size)
    return margin, size - margin


def _swing(
    rng: np.random.Generator, anchor: float, room: tuple[float, float], speed: float, phase: float, middle: float
) -> Swing:
    """The way through `anchor` at `middle` that stays within `room` and is nowhere faster than |speed|."""
    sine = np.sin(phase) * (1 if speed >= 0 else -1)
    # the swing runs from anchor - amplitude * (1 + sine) to anchor + amplitude * (1 - sine)
    widest = min((room[1] - anchor) / max(1 - sine, 1e-6), (anchor - room[0]) / max(1 + sine, 1e-6))
    amplitude = max(1.0, widest) * rng.uniform(0.7, 1.0)
    omega = min(abs(speed) / amplitude, 0.3)
    return Swing(anchor, amplitude if speed >= 0 else -amplitude, omega, phase, middle)


def _crowding(mover: Mover, rivals: list[Mover], num_frames: int) -> float:
    """How much, and how long, circles about the objects overlap; 0 where there is no rival."""
    if not rivals:
        return 0.0
    times = np.arange(num_frames)
    tracks = np.stack([[m.x.at(times), m.y.at(times), m.diameter.at(times)] for m in rivals])   # (N, 3, T)
    x, y, diameter = mover.x.at(times), mover.y.at(times), mover.diameter.at(times)
    gap = np.hypot(tracks[:, 0] - x, tracks[:, 1] - y)                                            # (N, T)
    overlap = np.clip((tracks[:, 2] + diameter) * 0.45 - gap, 0, None) / np.minimum(tracks[:, 2], diameter)
    return float(np.square(overlap).mean(axis=1).sum() + 0.3 * overlap.mean(axis=1).max())
