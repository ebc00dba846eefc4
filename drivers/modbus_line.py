"""One TCP connection to a Modbus device or gateway: requests out, checked answers into a plan's image.

Rule 1: the first frame that is not exactly right ends the connection; nothing is resynchronised by guessing.
Rule 2: a transaction id that may still be answered is never used again, so a late answer can only be dropped.
Rule 3: it decides nothing about units, retries or reconnecting; that is the session's.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from random import randrange
from typing import NamedTuple

from drivers.modbus_frames import EXPIRED_MAX, LENGTH_MAX, LENGTH_MIN, check_mbap, next_transaction
from drivers.modbus_map import HEAD_BYTES, Block, Outcome, Plan
from edge_agent.contract import Clock

RX_BYTES = 8192
"""More than PIPELINE_MAX whole answers; the buffer can never fill up with frames."""


@dataclass(slots=True)
class Counts:
    """What the health topic shows of a connection; `bytes` in both directions."""

    requests: int = 0
    answers: int = 0
    timeouts: int = 0
    exceptions: int = 0
    protocol_errors: int = 0
    late: int = 0
    reconnects: int = 0
    resyncs: int = 0
    """How often answers were owed and a canary (or another answer) proved that the line is in step again."""
    bytes: int = 0


class Patience(NamedTuple):
    """How a probe waits. give_way: not while somebody else wants the line."""

    wait_us: int
    give_way: bool = True


class Round:
    """One pass over a plan: what became of each block, and when its answer was complete.

    outcomes: (blocks,) Outcome or exception code. stamps: (blocks,) UTC µs, 0 where nothing came.
    odd: True as soon as any outcome is not OK. words: of a block, why, where more is known than its outcome says.
    resynced: units whose answers were in doubt until one in this round proved that they are in step again.
    """

    __slots__ = ("odd", "outcomes", "plan", "resynced", "retried", "stamps", "timeouts_left", "words")

    def __init__(self, plan: Plan, timeouts_left: int) -> None:
        self.plan = plan
        self.outcomes: list[int] = [Outcome.PENDING] * len(plan.blocks)
        self.stamps = [0] * len(plan.blocks)
        self.odd = False
        self.retried = False
        self.resynced: set[int] = set()
        self.words: dict[int, str] = {}
        self.timeouts_left = timeouts_left


def stood_still_us(now_s: float, deadline_s: float, wait_us: int) -> int:
    """How old an answer may be (µs) beside the time in which it is awaited; 0 where that is not over.

    Whoever finds one after that has stood still meanwhile: the device may have given it right after the question.
    """
    return 0 if now_s < deadline_s else round((now_s - deadline_s) * 1e6) + wait_us


@dataclass(slots=True)
class _Flight:
    block: Block
    number: int
    deadline_s: float


@dataclass(slots=True, eq=False)
class Line(asyncio.BufferedProtocol):
    """The connection's protocol. `fault` says in words why it ended; `up` is False from then on.

    silent_streak: how often it was waited in vain since anything that was ours came back. _last: the block answered
    last in this run, while what follows could still show that its answer was not whole. _answered: with a pipeline,
    the blocks answered in this run and when (loop time, s).
    """

    clock: Clock
    timeout_us: int
    pipeline: int
    counts: Counts
    up: bool = False
    fault: str = ""
    silent_streak: int = 0
    heard: bool = False
    """Anything that was ours ever came back."""
    _last: int | None = None
    _answered: list[tuple[float, int]] = field(default_factory=list)
    _transport: asyncio.Transport | None = None
    _buffer: bytearray = field(default_factory=lambda: bytearray(RX_BYTES))
    _have: int = 0
    _flying: dict[int, _Flight] = field(default_factory=dict)
    _expired: set[int] = field(default_factory=set)
    _wait_us: int = 0
    _transaction: int = field(default_factory=lambda: randrange(65536))  # noqa: S311
    _round: Round | None = None
    _todo: deque[int] = field(default_factory=deque)
    _done: "asyncio.Future[None] | None" = None
    _timer: asyncio.TimerHandle | None = None
    _gone: "asyncio.Future[None] | None" = None
    _view: memoryview = field(init=False)
    _loop: asyncio.AbstractEventLoop = field(init=False)

    def __post_init__(self) -> None:
        self._view = memoryview(self._buffer)
        self._loop = asyncio.get_running_loop()

    # --------------------------------------------------------------------------------------- what the session calls

    async def run(self, round_: Round, todo: deque[int], patience: Patience | None = None) -> None:
        """Ask the blocks of todo, in order, until it is empty or the line is down (then the rest stays in todo).

        After a timeout the other blocks of that unit, and at the end of `timeouts_left` all, are SKIPPED.
        A cancelled run takes the connection down with it. patience: of a probe, which may be less than the timeout.
        """
        if not self.up or not todo:
            return
        self._wait_us = patience.wait_us if patience else self.timeout_us
        self._round, self._todo, self._last = round_, todo, None
        self._answered.clear()
        self._done = self._loop.create_future()
        self._send()
        try:
            await self._done
        except asyncio.CancelledError:
            self._fail(Outcome.LOST, "cancelled")
            raise
        finally:
            self._round = self._done = None

    async def close(self) -> None:
        """Take the connection down and wait until its socket is closed."""
        self._fail(Outcome.LOST, "closed")
        if self._gone is not None:
            await self._gone

    # ---------------------------------------------------------------------------------------- what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.up = transport, True
        self._gone = self._loop.create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(Outcome.LOST, f"connection lost: {exc}" if exc else "closed by the device")
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    def eof_received(self) -> None:
        # The device has said its last; an answer that is incomplete now stays so.
        self._fail(Outcome.LOST, "closed by the device")

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 (the loop's word)
        return self._view[self._have :] if self._have else self._view

    def buffer_updated(self, nbytes: int) -> None:
        self.counts.bytes += nbytes
        have = self._have + nbytes
        buffer, at = self._buffer, 0
        while have - at >= HEAD_BYTES:
            transaction = buffer[at] << 8 | buffer[at + 1]
            flight = self._flying.get(transaction)
            if flight is not None and buffer[at + 2 : at + 9] == flight.block.head:
                end = at + HEAD_BYTES + flight.block.size
                if have < end:
                    break
                self._accept(transaction, flight, at)
            else:
                end = self._doubtful(transaction, flight, at, have)
                if end == 0:
                    break
            at = end
        if at < have and self.up:
            self._check_rest(at, have - at)
        if not self.up:
            self._have = 0
            return
        if 0 < at < have:
            buffer[: have - at] = buffer[at:have]
        self._have = have - at
        if at:
            self._send()

    # ------------------------------------------------------------------------------------------------------ answers

    def _accept(self, transaction: int, flight: _Flight, at: int) -> None:
        block, round_ = flight.block, self._round
        assert round_ is not None
        del self._flying[transaction]
        start = at + HEAD_BYTES
        round_.plan.payload[block.offset : block.offset + block.size] = self._view[start : start + block.size]
        round_.outcomes[flight.number] = Outcome.OK
        now_s = self._loop.time()
        round_.stamps[flight.number] = self.clock.wall_us() - stood_still_us(now_s, flight.deadline_s, self._wait_us)
        self._last = flight.number
        if self.pipeline > 1:
            self._answered.append((now_s, flight.number))
        self.counts.answers += 1
        self.silent_streak, self.heard = 0, True

    def _doubtful(self, transaction: int, flight: _Flight | None, at: int, have: int) -> int:
        """Deal with a frame that is no plain good answer. Returns its end, 0 to wait for more or when the line fell."""
        buffer = self._buffer
        length = self._check_mbap(at)
        if length == 0:
            return 0
        if flight is None and transaction not in self._expired:
            return self._wrong(f"answer to transaction {transaction}, which was not asked")
        if flight is not None and length not in (LENGTH_MIN, flight.block.size + 3):
            return self._wrong(f"answer of {length - 3} bytes, {flight.block.size} asked")
        end = at + 6 + length
        if have < end:
            return 0
        if flight is None:
            self._expired.discard(transaction)
            self.counts.late += 1
            self.silent_streak, self.heard = 0, True
            return end
        outcome, words = check_mbap(flight.block, transaction, bytes(buffer[at:end]))
        if outcome <= 0:
            return self._wrong(words)
        assert self._round is not None
        del self._flying[transaction]
        self._round.outcomes[flight.number] = outcome
        self._round.stamps[flight.number] = self.clock.wall_us()
        self._round.odd = True
        self.counts.exceptions += 1
        self.silent_streak, self.heard = 0, True
        return end

    def _check_rest(self, at: int, count: int) -> None:
        """Bytes behind the last whole frame must be the beginning of an answer that is due now.

        Where none is due they show that a byte was put into the last one. A late answer that comes in pieces at this
        very moment is taken for that too: rather a reading lost than a wrong one.
        """
        if count >= 6 and self._check_mbap(at) == 0:
            return
        transaction = self._buffer[at] << 8 | self._buffer[at + 1]
        strange = count >= 2 and transaction not in self._flying and transaction not in self._expired
        if strange or (not self._flying and self._last is not None):
            self._wrong(f"{count} bytes that nobody asked for")

    def _check_mbap(self, at: int) -> int:
        """The length field of the frame that begins here; 0 when it is no frame at all, and the line is down."""
        buffer = self._buffer
        protocol = buffer[at + 2] << 8 | buffer[at + 3]
        length = buffer[at + 4] << 8 | buffer[at + 5]
        if protocol != 0 or not LENGTH_MIN <= length <= LENGTH_MAX:
            return self._wrong(f"no Modbus frame (protocol identifier {protocol}, length {length})")
        return length

    def _wrong(self, words: str) -> int:
        """Not what was asked: the line is left, and with it the answer just before.

        An answer that lost some bytes ends with the first of the next one, and one that gained some leaves its own end
        behind: both show only in what follows.
        """
        self.counts.protocol_errors += 1
        if self._last is not None:
            self._settle(self._last, Outcome.MALFORMED, self.clock.wall_us())
            self._last = None
        self._fail(Outcome.MALFORMED, words)
        return 0

    def _ask_again_since(self, since_s: float) -> None:
        """Take back what was answered while a request was in flight that never was.

        Its answer may have been swallowed as the end of one that was too short. With one request in flight there is
        nothing to take back.
        """
        while self._answered and self._answered[-1][0] >= since_s:
            _, number = self._answered.pop()
            if self._round is not None and self._round.outcomes[number] == Outcome.OK:
                self._round.outcomes[number] = Outcome.PENDING
                self._todo.append(number)

    def _fail(self, outcome: Outcome, words: str) -> None:
        """The end of this connection: whatever is in flight has this outcome, what is not yet asked stays in todo."""
        if self.up:
            self.up, self.fault = False, words
            assert self._transport is not None
            self._transport.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flying:
            self._ask_again_since(min(flight.deadline_s for flight in self._flying.values()) - self._wait_us / 1e6)
        now_us = self.clock.wall_us()
        for flight in self._flying.values():
            self._settle(flight.number, outcome, now_us)
        self._flying.clear()
        self._finish()

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _settle(self, number: int, outcome: Outcome, now_us: int) -> None:
        if self._round is not None:
            self._round.outcomes[number] = outcome
            self._round.stamps[number] = now_us
            self._round.odd = True

    # ----------------------------------------------------------------------------------------------------- requests

    def _send(self) -> None:
        """Keep `pipeline` requests in flight; the run is done when there are none left to send or to wait for."""
        round_, todo, flying = self._round, self._todo, self._flying
        if round_ is None:
            return
        if not flying and self._have == 0:
            self._last = None  # its end was clean, and nothing asked before it is still to come
        packets = []
        while todo and len(flying) < self.pipeline:
            number = todo.popleft()
            block = round_.plan.blocks[number]
            transaction = self._next_transaction()
            flying[transaction] = _Flight(block, number, self._loop.time() + self._wait_us / 1e6)
            packets.append(transaction.to_bytes(2, "big") + block.request)
        if packets:
            assert self._transport is not None
            packet = packets[0] if len(packets) == 1 else b"".join(packets)
            self.counts.requests += len(packets)
            self.counts.bytes += len(packet)
            self._transport.write(packet)
            if self._timer is None:
                self._timer = self._loop.call_later(self._wait_us / 1e6, self._tick)
        elif not flying:
            self._finish()

    def _next_transaction(self) -> int:
        self._transaction = next_transaction(self._transaction, self._expired)
        return self._transaction

    def _tick(self) -> None:
        """One timer for all requests, armed anew for the oldest one in flight rather than for each."""
        self._timer = None
        now_s = self._loop.time()
        over = [(number, flight) for number, flight in self._flying.items() if flight.deadline_s <= now_s + 1e-3]
        if over and self._round is not None:
            # What was waited for together has cost the read only once.
            self._round.timeouts_left -= 1
            self.silent_streak += 1
        for transaction, flight in over:
            self._expire(transaction, flight)
        if self._flying:
            oldest_s = next(iter(self._flying.values())).deadline_s
            self._timer = self._loop.call_at(oldest_s, self._tick)
        if self.up:
            self._send()

    def _expire(self, transaction: int, flight: _Flight) -> None:
        round_ = self._round
        if self._flying.pop(transaction, None) is None or round_ is None:
            return
        self._expired.add(transaction)
        self.counts.timeouts += 1
        now_us = self.clock.wall_us()
        self._settle(flight.number, Outcome.TIMED_OUT, now_us)
        self._ask_again_since(flight.deadline_s - self._wait_us / 1e6)
        for number in list(self._todo):
            if round_.timeouts_left <= 0 or round_.plan.blocks[number].unit == flight.block.unit:
                self._todo.remove(number)
                self._settle(number, Outcome.SKIPPED, now_us)
        if self._have or len(self._expired) >= EXPIRED_MAX:
            # Half an answer is not waited for: what follows it could not be told from the next one's head.
            self._fail(Outcome.LOST, "an answer that was never completed")
