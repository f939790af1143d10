"""Where the layers of a model are."""

from __future__ import annotations

from torch.nn import Module, ModuleList


def layers_of(model: Module) -> dict[str, str]:
    """Path → class name of every layer: the members of the outermost lists of modules in which something knows its
    place among the layers of the cache; if there are none, those of the longest list."""
    lists = {path: m for path, m in model.named_modules() if isinstance(m, ModuleList) and len(m)}
    outer = {path: m for path, m in lists.items() if not any(path.startswith(f"{other}.") for other in lists)}
    chosen = {path: m for path, m in outer.items() if any(hasattr(inner, "layer_idx") for inner in m.modules())}
    if not chosen and outer:
        longest = max(outer, key=lambda path: len(outer[path]))
        chosen = {longest: outer[longest]}
    found = {f"{path}.{name}": member for path, members in chosen.items() for name, member in members.named_children()}
    return {path: type(member).__name__ for path, member in found.items()}
