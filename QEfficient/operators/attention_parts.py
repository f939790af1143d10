"""What the bodies of attention are made of, for all keys and queries or for some: names end in what they are of."""

from __future__ import annotations

from QEfficient.operators.attention_variants import MASKED, Variant


def rule_constants(variant: Variant) -> list[str]:
    """Numbers that a node has as attributes."""
    lines = [
        "scale_value = Constant<value_float : float = @scale>()",
        f"unseen = Constant<value_float = {MASKED!r}>()",
        "scale_like = CastLike(scale_value, q)",
    ]
    if variant.capped:
        lines += ["cap_value = Constant<value_float : float = @softcap>()", "cap = CastLike(cap_value, q)"]
    if variant.windowed:
        lines += ["window_size = Constant<value_int : int = @window>()"]
    if variant.chunked:
        lines += ["chunk_size = Constant<value_int : int = @chunk>()"]
    return lines


def scaled_lines(of: str = "") -> list[str]:
    """`products4` → `scaled`."""
    return [f"scaled{of} = Mul(products4{of}, scale_like)"]


def cap_lines(of: str = "") -> list[str]:
    """`scaled` → `capped`."""
    return [
        f"small{of} = Div(scaled{of}, cap)",
        f"bounded{of} = Tanh(small{of})",
        f"capped{of} = Mul(bounded{of}, cap)",
    ]


def visible_lines(variant: Variant, queries: str = "", keys: str = "", of: str = "") -> list[str]:
    """`visible`, `query_position3` and `key_position3` → `visible_within`, what window and chunk let through."""
    lines, seen = [], f"visible{of}"
    if variant.windowed:
        lines += [
            f"too_old{of} = Sub(query_position3{queries}, window_size)",
            f"in_window{of} = Greater(key_position3{keys}, too_old{of})",
            f"visible_window{of} = And({seen}, in_window{of})",
        ]
        seen = f"visible_window{of}"
    if variant.chunked:
        lines += [
            f"query_chunk{of} = Div(query_position3{queries}, chunk_size)",
            f"key_chunk{of} = Div(key_position3{keys}, chunk_size)",
            f"in_chunk{of} = Equal(query_chunk{of}, key_chunk{of})",
            f"visible_chunk{of} = And({seen}, in_chunk{of})",
        ]
        seen = f"visible_chunk{of}"
    return [*lines, f"visible4{of} = Unsqueeze({seen}, axis1)"]


def hidden_lines(variant: Variant, of: str = "", seen: str = "") -> list[str]:
    """Scores and `visible4` → `hidden`, in float32, without what is not seen."""
    scores = "capped" if variant.capped else "scaled"
    return [
        f"scores32{of} = Cast<to = 1>({scores}{of})",
        f"hidden{of} = Where(visible4{seen or of}, scores32{of}, unseen)",
    ]
