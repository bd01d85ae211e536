"""Networks: tensors in, tensors out, one device."""

from models.crossvis import CrossVIS, CrossVISConfig

NETWORKS = {"crossvis": (CrossVIS, CrossVISConfig)}
"""name -> (network, its settings). Used by the lookup, by the error for a wrong name, and by the tests."""
