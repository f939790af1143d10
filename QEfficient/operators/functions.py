"""Portable bodies as ONNX local functions, written in ONNX's own text form."""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import parser

OPSET = 18
CLOUD_DOMAIN = "com.qualcomm.cloud"
DOMAIN = "qefficient"

_BUILDERS: dict[tuple[str, str], Callable[[], str]] = {}


def body(domain: str, name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register the text of an operator's body."""

    def register(text: Callable[[], str]) -> Callable[[], str]:
        _BUILDERS[domain, name] = text
        return text

    return register


def has_body(domain: str, name: str) -> bool:
    return (domain, name) in _BUILDERS


def build_function(domain: str, name: str) -> onnx.FunctionProto:
    """The ONNX function of a registered operator."""
    imports = f'["" : {OPSET}, "{CLOUD_DOMAIN}" : 1, "{DOMAIN}" : 1]'
    text = f'<domain: "{domain}", opset_import: {imports}>\n{_BUILDERS[domain, name]()}'
    return parser.parse_function(text)
