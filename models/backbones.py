"""Step 5, backbone: which trunk a network stands on, told by the settings' `name`.

In:     images (B, 3, H, W), H and W multiples of 32
Out:    maps at strides 8, 16, 32, before them one at stride 4 where asked for; `channels` and `strides` tell which
State:  none, but for the running statistics of norms that train
"""

from __future__ import annotations

from models.dla import DLA, DLAConfig
from models.resnet import ResNet, ResNetConfig
from models.swin import Swin, SwinConfig

BackboneConfig = ResNetConfig | DLAConfig | SwinConfig


def make_backbone(config: BackboneConfig, first_output: int = 3) -> ResNet | DLA | Swin:
    """The backbone of these settings; its first map is at stride 2**first_output.

    Raises TypeError for settings of no backbone, ValueError when `first_output` is none of 2..5.
    """
    if isinstance(config, ResNetConfig):
        return ResNet(config, first_output)
    if isinstance(config, DLAConfig):
        return DLA(config, first_output)
    if isinstance(config, SwinConfig):
        return Swin(config, first_output)
    raise TypeError(f"backbone settings are {type(config).__name__}, expected ResNetConfig or DLAConfig or SwinConfig")
