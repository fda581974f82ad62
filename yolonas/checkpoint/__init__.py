"""Checkpoints of every kind in use, read without executing anything in them; and our own, written.

From the file up: `torch_zip` and `safetensors_file` find tensors and plain values, `pickle_reader` interprets the
pickles between them, `contents` finds the network, and `settings` and `processing` what else the file says about it.
"""

from __future__ import annotations

from .checkpoint import Checkpoint, load_model, read_checkpoint, save_checkpoint
from .sg_file import save_super_gradients

__all__ = ["Checkpoint", "load_model", "read_checkpoint", "save_checkpoint", "save_super_gradients"]
