"""Attention in blocks: keys and values read some at a time, for some rows, heads and queries at a time; unrolled.

The weights of each block of keys sum to one, and blocks are joined by their shares: with `top` the largest score of one
and `sum` that of exp(score - top), its share is sum · exp(top - larger top) of the total. So nothing grows with the
context, and a block of which nothing is seen, whose top is `MASKED`, has none beside one that is seen.

Bounds follow from sizes. An axis may be shorter than its parts are many (one token in decoding), so all parts are as
long as the first, and the last begin earlier instead: keys that a block repeats are hidden, rows and queries that are
computed twice are taken once.
"""

from __future__ import annotations

from QEfficient.operators.attention_parts import cap_lines, hidden_lines, scaled_lines, visible_lines
from QEfficient.operators.attention_variants import Variant


def blocked_lines(variant: Variant) -> list[str]:
    """The body's lines behind what writes, and behind what reads if all keys are read at once."""
    writer = _Writer(variant)
    writer.write()
    return list(writer.lines)


class _Writer:
    """Appends lines; its methods return the names of what they make."""

    def __init__(self, variant: Variant) -> None:
        self.lines = {"axis2 = Constant<value_ints = [2]>()": None}
        self._variant = variant
        parts = variant.parts
        self._counts = {"b": parts.batch, "h": parts.heads, "g": parts.heads, "q": parts.queries, "k": parts.keys}

    def write(self) -> None:
        self._bound("b", "batch")
        self._bound("q", "steps")
        self._bound_heads()
        keys = self._read()
        rows = []
        for b in range(self._counts["b"]):
            positions = self._cut("position_ids", f"positions_{b}", "b", b, "axis0")
            seen = [self._see(positions, b, q) for q in range(self._counts["q"])]
            heads = [self._attend_heads(keys, seen, b, h) for h in range(self._counts["h"])]
            rows.append(self._joined(heads, f"heads_{b}", 1))
        self._add(f"output = Identity({self._taken(self._joined(rows, 'rows', 0), 'rows_once', 'b', 0)})")

    def _add(self, *lines: str) -> None:
        """Lines that are not there yet: several parts may need the same."""
        self.lines |= dict.fromkeys(lines)

    # bounds and what they cut

    def _bound(self, axis: str, total: str) -> None:
        """Where the parts of an axis of that size start and end: all of them as long as the first."""
        count = self._counts[axis]
        if count == 1:
            return
        self._add(
            f"{axis}_count = Constant<value_ints = [{count}]>()",
            f"{axis}_more = Constant<value_ints = [{count - 1}]>()",
            f"{axis}_whole = Add({total}, {axis}_more)",
            f"{axis}_size = Div({axis}_whole, {axis}_count)",
            f"{axis}_last = Sub({total}, {axis}_size)",
        )
        for part in range(count):
            self._add(
                f"{axis}_place{part} = Constant<value_ints = [{part}]>()",
                f"{axis}_from{part} = Mul({axis}_size, {axis}_place{part})",
                f"{axis}_start{part} = Min({axis}_from{part}, {axis}_last)",
                f"{axis}_end{part} = Add({axis}_start{part}, {axis}_size)",
            )

    def _bound_heads(self) -> None:
        """Those of keys, and those of queries that they serve. There are never fewer heads than parts."""
        count = self._counts["h"]
        if count == 1:
            return
        self._add("groups = Div(query_heads, heads)", f"h_count = Constant<value_ints = [{count}]>()")
        for bound in range(count + 1):
            self._add(
                f"h_place{bound} = Constant<value_ints = [{bound}]>()",
                f"h_all{bound} = Mul(heads, h_place{bound})",
                f"h_bound{bound} = Div(h_all{bound}, h_count)",
                f"g_bound{bound} = Mul(h_bound{bound}, groups)",
            )

    def _cut(self, data: str, name: str, axis: str, part: int, place: str) -> str:
        if self._counts[axis] == 1:
            return data
        start, end = f"{axis}_start{part}", f"{axis}_end{part}"
        if axis in ("h", "g"):
            start, end = f"{axis}_bound{part}", f"{axis}_bound{part + 1}"
        self._add(f"{name} = Slice({data}, {start}, {end}, {place})")
        return name

    def _joined(self, values: list[str], name: str, axis: int) -> str:
        if len(values) == 1:
            return values[0]
        self._add(f"{name} = Concat<axis = {axis}>({', '.join(values)})")
        return name

    def _taken(self, data: str, name: str, axis: str, place: int) -> str:
        """Each place of an axis once, out of parts that may overlap."""
        if self._counts[axis] == 1:
            return data
        index = f"{axis}_index"
        self._add(
            f"{axis}_end = Add({axis}_last, {axis}_size)",
            f"{axis}_total = Squeeze({axis}_end)",
            f"{axis}_range = Range(nothing, {axis}_total, step)",
            f"{axis}_part = Div({axis}_range, {axis}_size)",
            f"{axis}_first = Mul({axis}_part, {axis}_size)",
            f"{axis}_begin = Min({axis}_first, {axis}_last)",
            f"{axis}_within = Sub({axis}_range, {axis}_begin)",
            f"{index} = Add({axis}_first, {axis}_within)",
        )
        self._add(f"{name} = Gather<axis = {place}>({data}, {index})")
        return name

    # keys and what is seen of them

    def _read(self) -> list[tuple[str, str]]:
        """Keys and values of each block, with `key_position3`."""
        if self._counts["k"] == 1:
            self._add("keys_0 = CastLike(keys, q)", "values_0 = CastLike(values, q)")
            self._add("key_position3_0 = Unsqueeze(key_positions, axis1)")
            return [("keys_0", "values_0")]
        self._add("count1 = Shape(reads)" if self._variant.bounded else "count1 = Shape(slot_range)")
        self._bound("k", "count1")
        if not self._variant.slots:
            self._add("index_shape = Concat<axis = 0>(batch, heads, k_size)")
        return [self._read_block(j) for j in range(self._counts["k"])]

    def _read_block(self, j: int) -> tuple[str, str]:
        index, gather = f"index_{j}", "com.qualcomm.cloud.CtxGatherBlockedKV"
        self._add(
            f"slot_range_{j} = Slice(slot_range, k_start{j}, k_end{j}, axis0)",
            f"wanted_{j} = Slice(wanted, k_start{j}, k_end{j}, axis1)",
            f"index_{j} = Unsqueeze(wanted_{j}, axis1)",
            f"live_{j} = Slice(live, k_start{j}, k_end{j}, axis1)",
            f"live4_{j} = Unsqueeze(live_{j}, live_axes)",
            f"key_position2_{j} = Unsqueeze(slot_range_{j}, axis0)",
            f"key_position3_{j} = Unsqueeze(key_position2_{j}, axis1)",
            f"own_{j} = GreaterOrEqual(key_position3_{j}, k_from{j})",
        )
        given = f"batch_index, {index}"
        if self._variant.slots:
            gather += "CB"
        else:
            self._add(f"indices_{j} = Expand({index}, index_shape)")
            given = f"indices_{j}"
        self._add(
            f"read_keys_{j} = {gather}(new_key, {given})",
            f"read_values_{j} = {gather}(new_value, {given})",
            f"live_values_{j} = Where(live4_{j}, read_values_{j}, nothing_like)",
            f"keys_{j} = CastLike(read_keys_{j}, q)",
            f"values_{j} = CastLike(live_values_{j}, q)",
        )
        return f"keys_{j}", f"values_{j}"

    def _see(self, positions: str, b: int, q: int) -> list[str]:
        """What each block of keys shows to these queries: the endings of `visible4`."""
        some = self._cut(positions, f"positions_{b}_{q}", "q", q, "axis1")
        self._add(f"query_position3_{b}_{q} = Unsqueeze({some}, rest)")
        endings = []
        for j in range(self._counts["k"]):
            of = f"_{b}_{q}_{j}"
            names = f"key_position3_{j}, query_position3_{b}_{q}"
            if self._counts["k"] == 1:
                self._add(f"visible{of} = LessOrEqual({names})")
            else:
                self._add(f"not_later{of} = LessOrEqual({names})", f"visible{of} = And(not_later{of}, own_{j})")
            self._add(*visible_lines(self._variant, f"_{b}_{q}", f"_{j}", of))
            endings.append(of)
        return endings

    # attention

    def _attend_heads(self, read: list[tuple[str, str]], seen: list[list[str]], b: int, h: int) -> str:
        """The output of some rows and heads."""
        of = f"_{b}_{h}"
        pairs = []
        for j, (keys, values) in enumerate(read):
            keys, values = (
                self._cut(self._cut(x, f"{x}_{b}", "b", b, "axis0"), f"{x}{of}", "h", h, "axis1")
                for x in (keys, values)
            )
            self._add(f"turned{of}_{j} = Transpose<perm = [0, 1, 3, 2]>({keys})")
            pairs.append((keys, values))
        query = self._cut(self._cut("q", f"query_{b}", "b", b, "axis0"), f"query{of}", "g", h, "axis1")
        done = []
        for q, endings in enumerate(seen):
            some = self._cut(query, f"query{of}_{q}", "q", q, "axis2")
            done.append(self._attend(some, pairs, endings, f"{of}_{q}", h))
        return self._taken(self._joined(done, f"queries{of}", 2), f"queries_once{of}", "q", 2)

    def _attend(self, query: str, read: list[tuple[str, str]], seen: list[str], of: str, h: int) -> str:
        """The output of some queries."""
        rows = of.rpartition("_")[0]
        self._add(
            f"batch{of} = Shape<start = 0, end = 1>({query})",
            f"query_heads{of} = Shape<start = 1, end = 2>({query})",
            f"steps{of} = Shape<start = 2, end = 3>({query})",
            f"heads{of} = Shape<start = 1, end = 2>({read[0][0]})",
            f"grouped_shape{of} = Concat<axis = 0>(batch{of}, heads{of}, rest, head_size)",
            f"grouped{of} = Reshape({query}, grouped_shape{of})",
            f"score_shape{of} = Concat<axis = 0>(batch{of}, query_heads{of}, steps{of}, rest)",
            f"output_shape{of} = Concat<axis = 0>(batch{of}, query_heads{of}, steps{of}, value_size)",
        )
        for j, (keys, values) in enumerate(read):
            at = f"{of}_{j}"
            self._add(f"products{at} = MatMul(grouped{of}, turned{rows}_{j})")
            self._add(f"products4{at} = Reshape(products{at}, score_shape{of})", *scaled_lines(at))
            self._add(*(cap_lines(at) if self._variant.capped else ()))
            self._add(*hidden_lines(self._variant, at, seen[j]))
            self._weigh(at)
            self._add(
                f"weights{at} = CastLike(weights32{at}, q)",
                f"key_total{at} = Shape<start = 2, end = 3>({keys})",
                f"weight_shape{at} = Concat<axis = 0>(batch{of}, heads{of}, rest, key_total{at})",
                f"grouped_weights{at} = Reshape(weights{at}, weight_shape{at})",
                f"mixed{at} = MatMul(grouped_weights{at}, {values})",
                f"block{at} = Reshape(mixed{at}, output_shape{of})",
            )
        return self._merge(of, h)

    @property
    def _joins(self) -> bool:
        """Whether anything is joined to the first block."""
        return self._counts["k"] > 1 or self._variant.sinks

    def _weigh(self, at: str) -> None:
        if not self._joins:
            self._add(f"weights32{at} = Softmax<axis = -1>(hidden{at})")
            return
        self._add(
            f"top{at} = ReduceMax<keepdims = 1>(hidden{at}, rest)",
            f"lower{at} = Sub(hidden{at}, top{at})",
            f"powers{at} = Exp(lower{at})",
            f"sum{at} = ReduceSum<keepdims = 1>(powers{at}, rest)",
            f"weights32{at} = Div(powers{at}, sum{at})",
        )

    def _merge(self, of: str, h: int) -> str:
        """The blocks joined one by one, and the sinks, which take a share and give nothing."""
        if not self._joins:
            return f"block{of}_0"
        for j in range(self._counts["k"]):
            self._add(f"wide{of}_{j} = Cast<to = 1>(block{of}_{j})")
        top, total, mixed = f"top{of}_0", f"sum{of}_0", f"wide{of}_0"
        for j in range(1, self._counts["k"]):
            at = f"{of}_{j}"
            top, total, mine, other = self._shares(f"join{at}", (top, total), (f"top{at}", f"sum{at}"))
            self._add(
                f"kept{at} = Mul({mixed}, {mine})",
                f"added{at} = Mul(wide{at}, {other})",
                f"mixed_until{at} = Add(kept{at}, added{at})",
            )
            mixed = f"mixed_until{at}"
        if self._variant.sinks:
            sink, one = self._sink(h)
            _, _, mine, _ = self._shares(f"sunk{of}", (top, total), (sink, one))
            self._add(f"mixed_sunk{of} = Mul({mixed}, {mine})")
            mixed = f"mixed_sunk{of}"
        self._add(f"attended{of} = CastLike({mixed}, q)")
        return f"attended{of}"

    def _shares(self, name: str, first: tuple[str, str], second: tuple[str, str]) -> tuple[str, str, str, str]:
        """Top and sum of two blocks together, and the share of each."""
        self._add(f"{name}_top = Max({first[0]}, {second[0]})")
        for letter, (top, total) in zip("ab", (first, second), strict=True):
            self._add(
                f"{name}_{letter}_lower = Sub({top}, {name}_top)",
                f"{name}_{letter}_power = Exp({name}_{letter}_lower)",
                f"{name}_{letter}_sum = Mul({total}, {name}_{letter}_power)",
            )
        self._add(
            f"{name}_sum = Add({name}_a_sum, {name}_b_sum)",
            f"{name}_a = Div({name}_a_sum, {name}_sum)",
            f"{name}_b = Div({name}_b_sum, {name}_sum)",
        )
        return f"{name}_top", f"{name}_sum", f"{name}_a", f"{name}_b"

    def _sink(self, h: int) -> tuple[str, str]:
        """The sinks of some heads, as a block of one key."""
        self._add(
            "sinks32 = Cast<to = 1>(sinks)",
            "sink_shape = Constant<value_ints = [1, -1, 1, 1]>()",
            "sink4 = Reshape(sinks32, sink_shape)",
            "sink_sum = Constant<value_float = 1.0>()",
        )
        return self._cut("sink4", f"sink4_{h}", "g", h, "axis1"), "sink_sum"
