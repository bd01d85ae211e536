"""Networks: tensors in, tensors out, one device."""

from models.centermask import CenterMask, CenterMaskConfig
from models.cico import CiCo, CiCoConfig
from models.condinst import CondInst, CondInstConfig
from models.crossvis import CrossVIS, CrossVISConfig
from models.iai import IAI, IAIConfig
from models.iai_maskrcnn import IAIMaskRCNN, IAIMaskRCNNConfig
from models.masktrack_rcnn import MaskTrackConfig, MaskTrackRCNN
from models.tltm import TLTM, TLTMConfig

NETWORKS = {
    "centermask": (CenterMask, CenterMaskConfig),
    "cico": (CiCo, CiCoConfig),
    "condinst": (CondInst, CondInstConfig),
    "crossvis": (CrossVIS, CrossVISConfig),
    "iai_condinst": (IAI, IAIConfig),
    "iai_maskrcnn": (IAIMaskRCNN, IAIMaskRCNNConfig),
    "masktrack_rcnn": (MaskTrackRCNN, MaskTrackConfig),
    "tltm": (TLTM, TLTMConfig),
}
"""name -> (network, its settings). Used by the lookup, by the error for a wrong name, and by the tests."""
