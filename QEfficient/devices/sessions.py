"""What a session is fed with and gives back, and the sessions themselves: all that the engine knows of a device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from QEfficient.errors import DeviceError, SessionLostError
from QEfficient.program import CompiledEncoder


@dataclass(frozen=True)
class Choice:
    """How a program that chooses tokens itself is to choose the next one of a row."""

    random_numbers: np.ndarray
    """As many as `Limits.choice` says, between 0 and 1."""
    temperature: float = 0.0
    top_k: int = 0
    """0: as many as the program looks at."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    allowed: np.ndarray | None = None
    """Which tokens of the vocabulary may be said; None: all."""
    follows_prompt: bool = False
    """Whether the row's tokens are of a prompt; else they were chosen before."""


@dataclass(frozen=True)
class ChoiceLimits:
    """What a program that chooses tokens itself can do."""

    widest: int
    """Among so many of the likeliest tokens it chooses; so many random numbers it takes."""
    vocabulary: int
    guided: bool = False
    """Whether it can be told which tokens may be said."""


@dataclass(frozen=True)
class Row:
    """Some consecutive tokens of one sequence."""

    slot: int
    tokens: Sequence[int]
    start: int
    """Position of the first token."""
    logits: int = 1
    """After how many of the tokens, counted from the last, logits are wanted."""
    blocks: Sequence[int] = ()
    """Where a session with paging keeps the sequence, in order, with room for these tokens."""
    choice: Choice | None = None
    """Where the program itself chooses the token; None: the likeliest."""


@dataclass(frozen=True)
class Batch:
    """Which tokens of which sequences at which positions run now. A slot occurs once."""

    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Paging:
    """State in blocks of consecutive tokens, which sequences take as they grow."""

    block_size: int
    """Tokens of one block."""
    blocks: int
    shareable: bool = True
    """Whether the blocks are all the state there is: then sequences may share those of a common beginning, and a
    sequence may go back to an earlier position."""


@dataclass(frozen=True)
class Limits:
    """What a session can be fed with; the scheduler plans within it."""

    slots: int
    chunk: int
    """Most tokens of one row in one run."""
    ctx_len: int
    decode_rows: int
    """Most one-token rows in one run."""
    prefill_rows: int
    """Most rows longer than one token in one run."""
    tokens: int | None = None
    """Most tokens of all rows in one run. A session with this limit runs rows of one token and of several together at
    no loss; None: they are run apart, and only the rows are counted."""
    logits: int = 1
    """Most `logits` of one row."""
    decode_chunk: int = 1
    """Most tokens of a row that counts among the `decode_rows`: more than one where tokens can be tried ahead in such a
    run."""
    guesses: int = 0
    """How many tokens behind the next one the program guesses; what, `Session.guesses` says after a run."""
    choice: ChoiceLimits | None = None
    """The program chooses tokens itself: of its logits all are 0 but that of the token, which is 1."""
    paging: Paging | None = None
    keeps_slots: bool = False
    """Whether a slot holds what its last sequence has computed, position by position, so that another that begins alike
    can go on from there."""
    bounded_by_model: bool = False
    """Whether `ctx_len` is what the model has positions for, less than what the program was compiled for."""

    def is_short(self, row: Row) -> bool:
        """Whether a row counts among the `decode_rows`."""
        return len(row.tokens) <= self.decode_chunk

    def check(self, batch: Batch) -> None:
        """Refuse a batch that does not fit, saying both numbers."""
        taken = [row.slot for row in batch.rows]
        if not taken or len(set(taken)) != len(taken):
            raise DeviceError(f"a batch needs rows, each of another slot; these are its slots: {taken}.")
        for row in batch.rows:
            self._check_row(row)
        short = sum(self.is_short(row) for row in batch.rows)
        one = "one" if self.decode_chunk == 1 else f"at most {self.decode_chunk}"
        counts = ((one, short, self.decode_rows), ("several", len(taken) - short, self.prefill_rows))
        for what, count, most in counts:
            if count > most:
                raise DeviceError(f"a batch has {count} rows of {what} token(s), but one run takes {most}.")
        total = sum(len(row.tokens) for row in batch.rows)
        if self.tokens is not None and total > self.tokens:
            raise DeviceError(f"a batch has {total} tokens, but one run takes {self.tokens}.")

    def _check_row(self, row: Row) -> None:
        if not 0 <= row.slot < self.slots:
            raise DeviceError(f"slot {row.slot} was asked for, but there are {self.slots} (0 to {self.slots - 1}).")
        if not 1 <= len(row.tokens) <= self.chunk:
            raise DeviceError(f"a row has {len(row.tokens)} tokens, but one run takes 1 to {self.chunk}.")
        end = row.start + len(row.tokens)
        if row.start < 0 or end > self.ctx_len:
            raise DeviceError(
                f"a row covers the positions {row.start:,} to {end - 1:,}, but the program was compiled for"
                f" ctx_len {self.ctx_len:,}. Compile again with a larger ctx_len."
            )
        most = min(self.logits, len(row.tokens))
        if not 0 <= row.logits <= most:
            raise DeviceError(f"a row wants the logits of {row.logits} tokens, but it can have those of 0 to {most}.")
        if self.paging is not None:
            self._check_blocks(row, self.paging)

    @staticmethod
    def _check_blocks(row: Row, paging: Paging) -> None:
        needed = -(-(row.start + len(row.tokens)) // paging.block_size)
        if len(row.blocks) < needed:
            raise DeviceError(f"a row of slot {row.slot} needs {needed} blocks and has {len(row.blocks)}.")
        if len(set(row.blocks)) != len(row.blocks) or not all(0 <= b < paging.blocks for b in row.blocks):
            raise DeviceError(
                f"slot {row.slot} has the blocks {list(row.blocks)}; {paging.blocks} different ones are there."
            )


class Session(ABC):
    """Live buffers and state of one compiled program. Not thread-safe."""

    limits: Limits
    guesses: np.ndarray | None = None
    """Of a program that guesses, `[tokens whose logits were wanted, guesses]`: what it takes for the likeliest tokens
    behind the next one, of the last run."""

    @abstractmethod
    def run(self, batch: Batch) -> np.ndarray:
        """Feed the rows; return float32 logits `[tokens whose logits are wanted, vocabulary]`, in their order."""

    def copy_block(self, source: int, target: int) -> None:
        """Make one block a copy of another. For sessions with paging."""
        raise DeviceError("this session keeps no blocks.")

    @property
    def lost(self) -> SessionLostError | None:
        """Why it can run nothing any more, although nobody has closed it."""
        return None

    def offer(self, owner: Callable[[], bool]) -> None:  # noqa: B027
        """Say whom a device may ask that lacks room for another program of this process: the owner, a bound method that
        is held weakly, lets the session rest if nothing needs it now, and says whether it did."""

    def rest(self) -> bool:
        """Give the device to others until the next run, which takes it again; what was computed is gone then. False: it
        has nothing that others could use."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Give everything back; idempotent."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EncoderSession(ABC):
    """One compiled program without state. Not thread-safe."""

    def __init__(self, compiled: CompiledEncoder) -> None:
        model, self.spec = compiled.program.model, compiled.spec
        pad = model.pad_token_id
        self._pad_id = pad if pad is not None and 0 <= pad < model.vocab_size else 0

    @abstractmethod
    def _execute(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Run one call of exactly a compiled shape; return `[rows, length, hidden]` or, pooled, `[rows, hidden]`."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back; idempotent."""

    def encode(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """float32 features of at most `batch_size` rows `[rows, length]`, which are padded to a compiled shape."""
        rows, length = input_ids.shape
        if rows > self.spec.batch_size:
            most = self.spec.batch_size
            raise DeviceError(f"a call has {rows} rows, but the program was compiled for batch_size {most}.")
        shape = (self.spec.batch_size, self.spec.padded_length(length))
        ids, mask = np.full(shape, self._pad_id, np.int64), np.zeros(shape, np.int64)
        ids[:rows, :length], mask[:rows, :length] = input_ids, attention_mask
        mask[rows:, 0] = 1  # a row that may look at nothing would be a mean of nothing
        features = self._execute(ids, mask)[:rows].astype(np.float32)
        return features[:, :length] if features.ndim == 3 else features

    def __enter__(self) -> EncoderSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Watch:
    """What a session shows of its runs, for those who look for an error."""

    folder: Path | None = None
    """Where the buffers of its first runs are written."""
    debug: bool = False
    """Whether the device's runtime logs all that it does."""
