"""Portable bodies as ONNX local functions, written in ONNX's own text form."""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import parser

OPSET = 18
CLOUD_DOMAIN = "com.qualcomm.cloud"
DOMAIN = "qefficient"

Family = Callable[[str], str | None]
"""The text of an operator's body by its name; None if it is none of these."""

_BUILDERS: dict[tuple[str, str], Callable[[], str]] = {}
_FAMILIES: dict[tuple[str, str], Family] = {}


def body(domain: str, name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register the text of an operator's body."""

    def register(text: Callable[[], str]) -> Callable[[], str]:
        _BUILDERS[domain, name] = text
        return text

    return register


def family(domain: str, prefix: str) -> Callable[[Family], Family]:
    """Register the bodies of all operators whose names begin so."""

    def register(text: Family) -> Family:
        _FAMILIES[domain, prefix] = text
        return text

    return register


def has_body(domain: str, name: str) -> bool:
    return _text(domain, name) is not None


def _text(domain: str, name: str) -> str | None:
    if (domain, name) in _BUILDERS:
        return _BUILDERS[domain, name]()
    found = (text(name) for (own, prefix), text in _FAMILIES.items() if own == domain and name.startswith(prefix))
    return next((text for text in found if text is not None), None)


def build_function(domain: str, name: str) -> onnx.FunctionProto:
    """The ONNX function of a registered operator."""
    imports = f'["" : {OPSET}, "{CLOUD_DOMAIN}" : 1, "{DOMAIN}" : 1]'
    return parser.parse_function(f'<domain: "{domain}", opset_import: {imports}>\n{_text(domain, name)}')
