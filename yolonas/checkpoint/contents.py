"""Finds the network's weights and settings in what a checkpoint file holds, whoever wrote it.

Input is the inert tree that the readers make (`torch_zip`, `safetensors_file`); output is a flat table of stored
tensors under the network's own keys, and the settings as the file has them, unchecked. Which network it is, whether the
tensors fit and what the settings are worth is decided in `checkpoint`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..errors import CheckpointError
from .pickle_names import Record
from .processing import plain_list
from .tensor_file import StoredTensor, brief

ROOTS = ("backbone", "neck", "heads")  # the network's children, with which its keys begin
MAX_KEY = 500  # characters; real ones have under 100
MAX_ENTRIES = 200_000  # modules and tensors in a pickled module; real ones have under 5,000
MAX_DEPTH = 64

_ANCHOR = "heads.head1.cls_pred.weight"  # in every form of every size


@dataclass
class Contents:
    """What a file holds, before anything of it is believed."""

    kind: str
    tensors: dict[Any, Any]  # the state dict as it stands in the file; values need not be tensors
    names: Any = None
    processing: Any = None
    conf: Any = None
    iou: Any = None
    top_k: Any = None
    max_det: Any = None
    multi_label: Any = None
    agnostic: Any = None
    notes: list[str] = field(default_factory=list)


def find_contents(tree: Any) -> Contents:
    """The weights and settings in an object of torch.save. Raises CheckpointError if there are no weights in it."""
    if isinstance(tree, Record):
        return _from_module(tree)
    if not isinstance(tree, dict):
        raise CheckpointError(f"holds no weights but a {type(tree).__name__}")
    if _is_weights(tree.get("ema_net")) or _is_weights(tree.get("net")):
        return _from_super_gradients(tree)
    if _is_weights(tree.get("model_state_dict")):
        return _from_trainer(tree)
    for key, other in (("ema", "model"), ("model", "ema")):
        if isinstance(tree.get(key), Record) and _is_weights(tree[key]):
            contents = _from_module(tree[key])
            if _is_weights(tree.get(other)):
                contents.notes.append(f"The file holds two networks; '{key}' is used and '{other}' is not.")
            return contents
    if _is_weights(tree.get("state_dict")):
        lightning = any(isinstance(key, str) and "lightning" in key for key in tree)
        contents = Contents("lightning" if lightning else "state dict", _weights(tree["state_dict"]))
        settings = tree.get("hyper_parameters")
        for table in (tree, settings if isinstance(settings, dict) else {}):
            contents.names = contents.names or table.get("class_names") or table.get("names")
        return contents
    if any(isinstance(value, StoredTensor) for value in tree.values()):
        return Contents("state dict", tree)
    raise CheckpointError(f"holds no weights that this library knows; its entries are {listed(tree)}")


def network_tensors(contents: Contents) -> dict[str, StoredTensor]:
    """The stored tensors under the network's own keys, without the prefixes that wrappers put before them.

    Where several copies of the network are in one table (`model.` and `ema_model.`, say) the averaged one is taken.
    What else is in the table is noted in `contents.notes`, or left in for the check of the keys if there is no prefix.

    Raises:
        CheckpointError: no network, a YOLO-NAS-Pose network, or an entry that is no tensor.
    """
    groups: dict[str, dict[str, Any]] = {}
    outside: dict[str, Any] = {}
    for key, value in contents.tensors.items():
        if not isinstance(key, str) or len(key) > MAX_KEY:
            raise CheckpointError(f"must have keys that are strings of at most {MAX_KEY} characters, got {brief(key)}")
        parts = [part for part in key.split(".") if part != "_orig_mod"]  # torch.compile's wrapper, at any depth
        start = next((i for i, part in enumerate(parts) if part in ROOTS), None)
        if start is None:
            outside[".".join(parts)] = value
        else:
            groups.setdefault(".".join(parts[:start]), {})[".".join(parts[start:])] = value
    if not groups:
        raise CheckpointError(f"holds no YOLO-NAS network; its keys are {listed(contents.tensors)}")
    prefix = max(groups, key=lambda name: (_ANCHOR in groups[name], "ema" in name.lower(), len(groups[name])))
    tensors = groups.pop(prefix)
    if any("pose" in part for key in tensors for part in key.split(".")[2:3]):
        raise CheckpointError("is a YOLO-NAS-Pose network, which is not supported; only detection networks are")
    tensors = {key: value for key, value in tensors.items() if value is not None}
    unusable = [key for key, value in tensors.items() if not isinstance(value, StoredTensor)]
    if unusable:
        raise CheckpointError(f"{listed(unusable)} must be dense tensors, got {type(tensors[unusable[0]]).__name__}")
    for other, group in groups.items():
        contents.notes.append(f"{len(group)} keys under {brief(other)!r} were ignored, {brief(prefix)!r} is used.")
    strangers = [key for key, value in outside.items() if isinstance(value, StoredTensor)]
    if strangers and not prefix:
        tensors.update((key, outside[key]) for key in strangers)
    elif strangers:
        contents.notes.append(f"{len(strangers)} keys outside the network were ignored: {listed(strangers)}.")
    return tensors


def listed(keys: Iterable[Any], limit: int = 5) -> str:
    """The first few keys and how many there are, for a message."""
    keys = [brief(key) for key in keys]
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")


def _from_super_gradients(tree: dict[Any, Any]) -> Contents:
    averaged = _is_weights(tree.get("ema_net"))
    contents = Contents("super-gradients checkpoint", _weights(tree["ema_net" if averaged else "net"]))
    if averaged and _is_weights(tree.get("net")):
        contents.notes.append("The averaged weights 'ema_net' are used, not 'net'.")
    settings = tree.get("processing_params")
    settings = settings.attributes if isinstance(settings, Record) else settings
    if isinstance(settings, dict):
        contents.names = settings.get("class_names")
        contents.processing = settings.get("image_processor")
        contents.conf, contents.iou = settings.get("conf"), settings.get("iou")
        contents.top_k, contents.max_det = settings.get("nms_top_k"), settings.get("max_predictions")
        contents.multi_label = settings.get("multi_label_per_box")
        contents.agnostic = settings.get("class_agnostic_nms")
    return contents


def _from_trainer(tree: dict[Any, Any]) -> Contents:
    average = tree.get("ema")
    average = average.get("ema_state_dict") if isinstance(average, dict) else None
    averaged = _is_weights(average)
    contents = Contents("modern-yolonas trainer", _weights(average if averaged else tree["model_state_dict"]))
    if averaged:
        contents.notes.append("The averaged weights 'ema_state_dict' are used, not 'model_state_dict'.")
    contents.names = tree.get("class_names") or tree.get("names")
    return contents


def _from_module(root: Record) -> Contents:
    tensors, network = _flatten(root)
    if not tensors:
        raise CheckpointError(f"holds no network but an object of class {brief(root.cls.full)}")
    contents = Contents("pickled module", tensors)
    if network is not None:
        settings = network.attributes
        contents.names = settings.get("_class_names")
        contents.processing = settings.get("_image_processor")
        contents.conf, contents.iou = settings.get("_default_nms_conf"), settings.get("_default_nms_iou")
        contents.top_k = settings.get("_default_nms_top_k")
        contents.max_det = settings.get("_default_max_predictions")
        contents.multi_label = settings.get("_default_multi_label_per_box")
        contents.agnostic = settings.get("_default_class_agnostic_nms")
    return contents


def _flatten(root: Record) -> tuple[dict[str, Any], Record | None]:
    """The state dict of a pickled module, in the order that torch gives it, and the module that is the network itself.

    A module's parameters come first, then its buffers except the non-persistent ones, then its children. Records may
    contain themselves or each other many times over, so depth and number are limited.
    """
    tensors: dict[str, Any] = {}
    network = None
    pending: list[tuple[str, Record, int]] = [("", root, 0)]
    visited = 0
    while pending:
        prefix, module, depth = pending.pop()
        attributes = module.attributes
        parameters, buffers = _table(attributes.get("_parameters")), _table(attributes.get("_buffers"))
        children = _table(attributes.get("_modules"))
        skipped = plain_list(attributes.get("_non_persistent_buffers_set")) or []
        visited += 1 + len(parameters) + len(buffers) + len(children) + len(skipped)
        if visited > MAX_ENTRIES or depth > MAX_DEPTH or len(prefix) > MAX_KEY:
            raise CheckpointError(f"has more than {MAX_ENTRIES} modules and tensors or nests them too deeply")
        skipped = {name for name in skipped if isinstance(name, str)}
        tensors.update((prefix + str(name)[:MAX_KEY], value) for name, value in parameters.items())
        tensors.update((prefix + str(name)[:MAX_KEY], buffers[name]) for name in buffers if name not in skipped)
        if network is None and all(name in children for name in ROOTS):
            network = module
        for name, child in reversed(children.items()):
            if isinstance(child, Record):
                pending.append((f"{prefix}{str(name)[:MAX_KEY]}.", child, depth + 1))
    return tensors, network


def _table(value: Any) -> dict[Any, Any]:
    value = value.items if isinstance(value, Record) else value
    return value if isinstance(value, dict) else {}


def _is_weights(value: Any) -> bool:
    if isinstance(value, Record):
        return isinstance(value.attributes.get("_modules"), (dict, Record)) or _is_weights(value.items)
    return isinstance(value, dict) and any(isinstance(item, StoredTensor) for item in value.values())


def _weights(value: Any) -> dict[Any, Any]:
    if isinstance(value, Record):
        return _flatten(value)[0] if "_modules" in value.attributes else value.items
    return value
