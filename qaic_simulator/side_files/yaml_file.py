"""YAML files beside a model: plain lists and mappings of texts."""

from __future__ import annotations

import reprlib
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from qaic_simulator.profiles import Profile

MOST_PARTS = 1 << 16
"""Scalars, lists and mappings that aliases may make of a file; a few lines can stand for any number of them."""

_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 2
_BRIEF.maxstring = 200


def briefly(content: Any) -> str:
    """A part of a file for a message: what stands at the place of something else may be of any size."""
    return _BRIEF.repr(content)


def read_yaml(path: Path, profile: Profile) -> Any:
    """What a YAML file holds, every scalar as the text that stands there."""
    try:
        # Names of tensors are often numbers, which the usual loader would turn into something else than names.
        loader = yaml.BaseLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return None
        content = loader.construct_document(node)  # before the parts are counted: a part of itself is refused here
        _check_aliases(node, path.name, profile)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        profile.refuse("yaml.syntax", f"{path.name} is not YAML: {str(error).splitlines()[0]}")
        return None
    return content


def _check_aliases(node: yaml.Node, name: str, profile: Profile) -> None:
    """Refuse aliases that stand for very much, and keys that stand twice in one mapping."""
    counted: dict[int, int] = {}
    parts = _parts(node, counted, name, profile)
    if parts > MOST_PARTS and parts > len(counted):
        profile.refuse("yaml.aliases", f"The aliases of {name} make more than {MOST_PARTS} parts of {len(counted)}.")


def _parts(node: yaml.Node, counted: dict[int, int], name: str, profile: Profile) -> int:
    """How many parts a node has where each alias is written out; what is counted once is not looked at again."""
    if id(node) not in counted:
        inner = [part for entry in node.value for part in entry] if isinstance(node, yaml.MappingNode) else []
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, name, profile)
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        counted[id(node)] = 1 + sum(_parts(part, counted, name, profile) for part in inner)
    return counted[id(node)]


def _check_keys(node: yaml.MappingNode, name: str, profile: Profile) -> None:
    keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
    for key in (key for key, times in keys.items() if times > 1):
        profile.refuse("yaml.repeated", f"{name}: the key {key!r} stands twice in one mapping.")
