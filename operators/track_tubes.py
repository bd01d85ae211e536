"""Step 7 for networks that see clips: tubes of a stream's clips, one after the other, to tracked instances of frames.

In:     ClipTubes        of one stream in order
Out:    FrameDetections  of the frames that leave with the clip; `track_ids` set, tracks in the order in which they
                         began, boxes in pixels of the original frame, clipped. What a clip shows, all its frames have:
                         a track that is not to be seen in one of them has an empty mask there
State:  ClipMemory       one per stream, on the stage's device; see clip_tracking.py
Limits: as released nothing is forgotten within a video; `max_unseen` bounds the memory of endless streams. A snapshot
        takes T x Hp/4 x Wp/4 / 8 bytes of masks a track, 5.8 kB at T = 3 and 384x640, and some 1 kB of the rest.
        Where frames change their size mid-way all tracks end; numbers go on
Source: CiCo specification 4.4, 4.5; the rules are those of clip_tracking.py
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.cico_masks import MaskForm, Window, paint
from models.losses import at_least_float32
from models.outputs import Detections
from operators.boxes import clip_boxes
from operators.clip_tracking import ClipMemory, ClipTrackConfig, ClipTracks, advance
from operators.errors import StageError
from operators.kept_features import owned
from operators.records import ClipPlace, ClipTubes, FrameDetections
from operators.states import check_open, check_order, pack, refuse_closed, refuse_open, unpacked

Form = tuple[int, int, tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class _Stream:
    memory: ClipMemory | None = None
    """None before the first clip."""
    form: Form | None = None
    """What clips must agree in to be of one memory."""
    last: int = -1
    """Index of the newest frame that left."""


class TrackTubes:
    """Keeps one ClipMemory per stream and folds `advance` over its clips. `masks` is the network's."""

    def __init__(self, config: ClipTrackConfig, masks: MaskForm, device: torch.device) -> None:
        self.config, self.masks, self.device = config, masks, device
        self._streams: dict[str, _Stream] = {}

    def open(self, stream: str) -> None:
        refuse_open("track_tubes", stream, self._streams, "it begins anew")
        self._streams[stream] = _Stream()

    @torch.inference_mode()
    def __call__(self, batch: list[ClipTubes]) -> list[FrameDetections]:
        """Raises StageError for a stream that is not open, clips out of order, and a memory of another network. A call
        that raises changes nothing."""
        streams, given = dict(self._streams), []
        for clip in batch:
            given += self._one(clip, streams)
        self._streams = streams
        return given

    def _one(self, clip: ClipTubes, streams: dict[str, _Stream]) -> list[FrameDetections]:
        state = self._before(clip, streams)
        found = replace(clip.tubes, **{name: value.to(self.device) for name, value in vars(clip.tubes).items()})
        on_these = functools.partial(self._paint, clip.prototypes.to(self.device))
        frames = [info.index for info in clip.infos]
        memory, tracks = advance(state.memory, found, frames, on_these, self.config)
        streams[clip.info.stream] = _Stream(memory, _form(clip), clip.infos[clip.new - 1].index)
        return [self._frame(clip, tracks, number) for number in range(clip.new)]

    def _before(self, clip: ClipTubes, streams: dict[str, _Stream]) -> _Stream:
        """What is known of the clip's stream, fit for this clip."""
        info = clip.info
        check_open("track_tubes", info, streams)
        state = streams[info.stream]
        check_order("track_tubes", info, state.last)
        if state.memory is None:
            return state
        known, ours = _widths(state.memory), _widths(clip.tubes)
        if known != ours:
            raise StageError(
                f"track_tubes, {info}: tubes of {ours}, memory of {known} (frames, embedding, mask parameters). "
                f"Restored from another network?"
            )
        if state.form == _form(clip):
            return state
        none = ClipMemory.of(clip.tubes[:0], state.memory.next_id, ())
        return replace(state, memory=none)

    def _paint(
        self, prototypes: Tensor, parameters: Tensor, boxes: Tensor, levels: Tensor, window: Window
    ) -> Tensor:  # fmt: skip
        return paint(at_least_float32(prototypes), at_least_float32(parameters), boxes, levels, self.masks, window)

    def _frame(self, clip: ClipTubes, tracks: ClipTracks, number: int) -> FrameDetections:
        """What the clip's tracks look like in its frame `number`."""
        info, tubes = clip.infos[number], tracks.tubes
        (h, w), (padded_h, padded_w) = clip.size, clip.padded
        scale = tubes.boxes.new_tensor([padded_w * info.width / w, padded_h * info.height / h] * 2)
        found = Detections(
            boxes=clip_boxes(tubes.boxes[:, number] * scale, info.height, info.width),
            scores=tubes.scores,
            labels=tubes.labels,
            embeddings=tubes.embeddings,
            mask_logits=tubes.masks[:, number].logit(),
            track_ids=tracks.track_ids,
            mask_frame="plain",
        )
        place = ClipPlace(number, clip.real - 1 - number)
        return FrameDetections(info, found, clip.size, clip.padded, place)

    def snapshot(self, stream: str) -> bytes:
        refuse_closed("track_tubes", stream, self._streams)
        state = self._streams[stream]
        return pack({"last": state.last, "form": state.form, "memory": _as_plain(state.memory)})

    def restore(self, stream: str, state: bytes) -> None:
        """Raises StageError for an open stream, and for a damaged snapshot."""
        with unpacked(state, f"track_tubes, stream '{stream}'") as content:
            memory = _from_plain(content["memory"], self.device)
            kept = _Stream(memory, content["form"], int(content["last"]))
        refuse_open("track_tubes", stream, self._streams, "it is restored")
        self._streams[stream] = kept

    def close(self, stream: str) -> list[FrameDetections]:
        self._streams.pop(stream, None)
        return []


def _form(clip: ClipTubes) -> Form:
    return clip.info.height, clip.info.width, clip.size, clip.padded


def _widths(tubes: Any) -> tuple[int, int, int]:
    """Frames of a clip, and the widths of embeddings and mask parameters; of `Tubes` and of `ClipMemory`."""
    return tubes.boxes.shape[1], tubes.embeddings.shape[1], tubes.parameters.shape[1]


def _as_plain(memory: ClipMemory | None) -> dict[str, Any] | None:
    """Masks as bits."""
    if memory is None:
        return None
    tensors = {name: owned(value.cpu().contiguous()) for name, value in memory.tensors().items()}
    masks = tensors.pop("masks")
    bits = torch.from_numpy(np.packbits(masks.numpy().reshape(-1)))
    return {
        "tensors": tensors, "shape": tuple(masks.shape), "bits": bits, "next_id": memory.next_id,
        "frames": memory.frames,
    }  # fmt: skip


def _from_plain(plain: dict[str, Any] | None, device: torch.device) -> ClipMemory | None:
    if plain is None:
        return None
    shape = tuple(plain["shape"])
    masks = np.unpackbits(plain["bits"].numpy(), count=int(np.prod(shape))).reshape(shape).astype(bool)
    tensors = {**plain["tensors"], "masks": torch.from_numpy(masks)}
    placed = {name: value.to(device) for name, value in tensors.items()}
    return ClipMemory(**placed, next_id=int(plain["next_id"]), frames=tuple(plain["frames"]))
