"""The networks as plain torch modules whose attribute names are the keys of the checkpoints."""

from __future__ import annotations

from .fuse import fuse_, state_dict_form
from .network import FORMS, YoloNAS

__all__ = ["FORMS", "YoloNAS", "fuse_", "state_dict_form"]
