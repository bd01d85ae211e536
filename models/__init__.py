"""Networks: tensors in, tensors out, one device."""

from models.condinst import CondInst, CondInstConfig
from models.crossvis import CrossVIS, CrossVISConfig
from models.iai import IAI, IAIConfig
from models.iai_maskrcnn import IAIMaskRCNN, IAIMaskRCNNConfig
from models.masktrack_rcnn import MaskTrackConfig, MaskTrackRCNN

NETWORKS = {
    "condinst": (CondInst, CondInstConfig),
    "crossvis": (CrossVIS, CrossVISConfig),
    "iai_condinst": (IAI, IAIConfig),
    "iai_maskrcnn": (IAIMaskRCNN, IAIMaskRCNNConfig),
    "masktrack_rcnn": (MaskTrackRCNN, MaskTrackConfig),
}
"""name -> (network, its settings). Used by the lookup, by the error for a wrong name, and by the tests."""
