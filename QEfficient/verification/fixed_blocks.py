"""Sessions with paging, for checks that feed rows by hand: each slot has blocks of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from QEfficient.devices import Batch, Row, Session


class FixedBlocks(Session):
    """Adds blocks to rows that name none. As many slots as whole contexts fit."""

    def __init__(self, session: Session) -> None:
        paging = session.limits.paging
        assert paging is not None
        self._session = session
        self._size = -(-session.limits.ctx_len // paging.block_size)
        self.limits = replace(session.limits, slots=min(session.limits.slots, paging.blocks // self._size))

    def run(self, batch: Batch) -> np.ndarray:
        return self._session.run(Batch(tuple(map(self._placed, batch.rows))))

    def _placed(self, row: Row) -> Row:
        first = row.slot * self._size
        return row if row.blocks else replace(row, blocks=range(first, first + self._size))

    def close(self) -> None:
        self._session.close()


def with_fixed_blocks(session: Session) -> Session:
    """The session itself where it has no paging."""
    return session if session.limits.paging is None else FixedBlocks(session)
