"""A line on which one request is under way at a time: a serial line, a gateway in front of one, UDP.

Rule 1: a request that ends without its own whole answer leaves that answer owed.
Rule 2: while a unit owes answers, only one that looks unlike all of them is believed (the canary): where frames bear no
number, a late answer would else be taken for the next one, and shift every reading after it.
Rule 3: bytes that nobody asked for take back the answer just before them.
Rule 4: behind a gateway any unit's late answer may be handed out as any other's. There an answer proves nothing of other
units, so a read that could be mistaken asks for a little more than it wants: no late answer looks like that.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from drivers.modbus_frames import IDENTIFY, OPEN_SIZE, Ask, Found, Framing, Shape, canaries, judged, longer, of_block
from drivers.modbus_line import Counts, Patience, Round, stood_still_us
from drivers.modbus_map import UNREACHED, Outcome
from edge_agent.contract import Clock

QUIET_MAX_S = 0.3
"""After an answer that did not come from a unit that lives: the line is left alone so long, and listened to."""
NOISE_QUIET_S = 0.05
"""After a broken frame, of which more may come in another piece."""
BABBLE_S = 0.5
"""Of bytes without a pause: more than any frame takes, and nobody is waited for who never stops."""
OWED_FOR_S = 30.0
"""An answer that has not come by then comes no more."""
OPEN_QUIET_S = 0.1
"""A line that was just opened may still carry the answer to somebody else's last request."""
RECEIVED_MAX, DATAGRAMS_MAX = 16_384, 64
"""Bytes or datagrams that are kept until somebody looks; the answer to one request is one frame."""
LONGEST_PDU = 253
TARGET_SILENT = 11
"""A gateway's word that a unit did not answer it in time; the answer may come yet."""
TOO_MUCH = (2, 3)
"""How a device says that it has no more registers than were wanted."""


class Channel(Protocol):
    """Bytes to the other end; what comes from there goes to `Wire.received`, its end to `Wire.lost`."""

    def send(self, data: bytes) -> None:
        """Send all of it. A failure is told to `Wire.lost`, never raised."""
        ...

    async def close(self) -> None: ...


class Pace(NamedTuple):
    """What is known of a line beforehand. char_s: seconds for a character; gap_s: silence between frames.

    datagrams: each piece received is a frame of its own. breaks: after a broken frame the connection is of no more use.
    """

    char_s: float = 0.0
    gap_s: float = 0.0
    datagrams: bool = False
    breaks: bool = False
    numbered: bool = False
    """Frames bear the number of their request (MBAP), and a gateway stands between: what it answers is told by that
    number, however late; but some put the next one's number, and unit, on an answer that came too late."""


class Answer(NamedTuple):
    """What became of one request. outcome: Outcome or exception code. data: behind the byte count.

    resynced: it proved that the line is in step again after an answer was owed. stray: bytes came before it that nobody
    had asked for.
    """

    outcome: int
    data: bytes = b""
    at_us: int = 0
    words: str = ""
    resynced: bool = False
    stray: bool = False


class _Debt(NamedTuple):
    """An answer that may still come. until_s: loop time. noted: the unit's next reading is marked."""

    until_s: float
    noted: bool


@dataclass(slots=True, eq=False)
class Wire:
    """One physical line, shared by all who ask over it. `fault` says in words why it ended; `up` is False from then on.

    busy_us: how long it has been in use, waiting for answers and silence included.
    """

    framing: Framing
    pace: Pace
    clock: Clock
    up: bool = False
    fault: str = ""
    busy_us: int = 0
    _channel: Channel | None = None
    _counts: Counts = field(default_factory=Counts)
    _received: bytearray = field(default_factory=bytearray)
    _datagrams: "deque[bytes]" = field(default_factory=deque)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _waiting: int = 0
    _owed: dict[int, dict[Shape, "_Debt"]] = field(default_factory=dict)
    """By the unit that was asked: answers still to come."""
    _shifted: bool = False
    """Under the number of the request that is under way came an older answer."""
    _heard: set[int] = field(default_factory=set)
    _heard_s: float = 0.0
    _ends_s: float = 0.0
    _waits_us: int = 0
    """Until when (loop's time) the answer of now is awaited, and for how long."""
    _silent_until_s: float = 0.0

    # ----------------------------------------------------------------------------------------- what the channel calls

    def opened(self, channel: Channel) -> None:
        """The line is up. What may still be on its way from before is waited for."""
        self._channel, self.up, self.fault = channel, True, ""
        self._received.clear()
        self._datagrams.clear()
        self._silent_until_s = _now_s() + (0.0 if self.pace.numbered else OPEN_QUIET_S)

    def received(self, data: bytes) -> None:
        self._heard_s = _now_s()
        self._counts.bytes += len(data)
        # What piles up between two reads was not asked for; that it is there says enough.
        if self.pace.datagrams:
            if len(self._datagrams) < DATAGRAMS_MAX:
                self._datagrams.append(data)
        elif len(self._received) < RECEIVED_MAX:
            self._received += data
        self._news.set()

    def lost(self, words: str) -> None:
        """The other end, or the way to it, is gone."""
        if self.up:
            self.up, self.fault = False, words
        self._news.set()

    async def close(self) -> None:
        self.lost("closed")
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()

    # ---------------------------------------------------------------------------------------------- what others call

    async def exchange(self, ask: Ask, timeout_us: int, counts: Counts, give_way: bool = False) -> Answer:
        """Ask and wait for the answer, in its turn. give_way: end as if timed out when somebody else wants the line.

        A cancelled exchange leaves its answer owed; the line can be used on.
        """
        async with self._taken(counts):
            stray = await self._settle()
            owed = list(self._owing(ask.unit).values())
            if self.up and ask.shape in self._shapes(ask.unit):
                answer = await self._in_doubt(ask, timeout_us, give_way)
            else:
                answer = await self._ask(ask, timeout_us, give_way)
            proven = not self._owing(ask.unit)
            self._counts.resyncs += bool(owed) and proven
            doubted = proven and any(debt.noted for debt in owed)
            return answer._replace(stray=stray, resynced=answer.resynced or doubted)

    async def _in_doubt(self, ask: Ask, timeout_us: int, give_way: bool) -> Answer:
        """Ask for what an older answer could be taken for."""
        if self.pace.numbered:
            more = next((each for each in longer(ask) if each.shape not in self._shapes(ask.unit)), None)
            if more is not None:
                answer = await self._ask(more, timeout_us, give_way)
                if answer.outcome not in TOO_MUCH:
                    return answer._replace(data=answer.data[: ask.size])
        canary = next((each for each in canaries(ask) if each.shape not in self._shapes(ask.unit)), None)
        if canary is None or not self.up:
            return self._end(Outcome.SKIPPED, "answers to earlier requests may still come")
        answer = await self._ask(canary, timeout_us, give_way)
        if self._owing(ask.unit):
            said_of_the_unit = answer.outcome < 0 or answer.outcome in UNREACHED
            return answer if said_of_the_unit else self._end(Outcome.SKIPPED, "the canary was refused")
        answer = await self._ask(ask, timeout_us, give_way)
        return answer._replace(resynced=self.pace.numbered)

    def owes(self) -> bool:
        """Whether an answer may still come, to somebody who no longer waits for it."""
        now_s = _now_s()
        return any(debt.until_s > now_s for owing in self._owed.values() for debt in owing.values())

    @property
    def at_rest(self) -> bool:
        """Nothing was received since the last answer, and no silence has to be kept."""
        return not (self._received or self._datagrams or self.pace.gap_s) and _now_s() >= self._silent_until_s

    async def settle(self, counts: Counts) -> bool:
        """Wait for the silence after an answer. True when bytes came instead that nobody had asked for."""
        async with self._taken(counts):
            return await self._settle()

    @asynccontextmanager
    async def _taken(self, counts: Counts) -> AsyncIterator[None]:
        self._waiting += 1
        self._news.set()  # a probe that gives way looks up
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        began_us = self.clock.monotonic_us()
        self._counts = counts
        try:
            yield
        finally:
            self.busy_us += self.clock.monotonic_us() - began_us
            self._turn.release()

    # ------------------------------------------------------------------------------------------------------ one request

    async def _ask(self, ask: Ask, timeout_us: int, give_way: bool = False) -> Answer:
        if self._channel is None or self.fault:
            return self._end(Outcome.LOST, self.fault)
        sent = self.framing.wrap(ask)
        self._received.clear()
        self._datagrams.clear()
        self._shifted = False
        self._counts.requests += 1
        self._counts.bytes += len(sent)
        self._channel.send(sent)
        longest = LONGEST_PDU if ask.size == OPEN_SIZE else ask.size + 2
        on_the_wire_s = self.pace.char_s * (len(sent) + self.framing.length(longest))
        self._waits_us = round(on_the_wire_s * 1e6) + timeout_us
        self._ends_s = deadline_s = _now_s() + self._waits_us / 1e6
        try:
            while (answer := self._look(ask, sent)) is None:
                if not self.up:
                    answer = self._owe(ask, self._end(Outcome.LOST, self.fault))
                elif not await self._wait(deadline_s, give_way):
                    gave_way = give_way and self._waiting > 0
                    answer = (
                        self._owe(ask, self._end(Outcome.SKIPPED, "")) if gave_way else self._given_up(ask, timeout_us)
                    )
                if answer is not None:
                    break
        except asyncio.CancelledError:
            self._owe(ask, self._end(Outcome.TIMED_OUT, "cancelled"))
            raise
        return answer

    def _look(self, ask: Ask, sent: bytes) -> Answer | None:
        """The answer, if what was received so far holds it (or shows that it will not come)."""
        while (found := self._next(sent)) is not None:
            if not found.pdu:
                return self._wrong(ask, found.words)
            if found.late:
                self._counts.late += 1
                continue
            outcome, words = judged(ask, found.unit, found.pdu)
            if outcome == Outcome.MALFORMED:
                if self._paid(found):
                    continue
                return self._wrong(ask, words)
            if outcome in UNREACHED:
                return self._unreached(ask, outcome, words)
            if outcome > 0 and any(self._owes_kind(unit, ask.pdu[0]) for unit in self._may_speak(ask.unit)):
                # It may be the refusal of an earlier request of this kind.
                if self.pace.numbered:
                    return self._refused(ask, outcome, words)
                self._counts.late += 1
                continue
            answer = self._accepted(ask, found, outcome, words)
            # Or a neighbour's answer that looks like it: then ours is still to come.
            return self._owe(ask, answer) if ask.shape in self._shapes(ask.unit) else answer
        return None

    def _owes_kind(self, unit: int, function: int) -> bool:
        return any(shape[0] == function for shape in self._owing(unit))

    def _unreached(self, ask: Ask, outcome: int, words: str) -> Answer:
        """What the gateway says without the unit proves nothing of it; of one that it waited for, more may come."""
        self._counts.exceptions += 1
        answer = self._end(outcome, words)
        return self._owe(ask, answer) if outcome == TARGET_SILENT else answer

    def _refused(self, ask: Ask, outcome: int, words: str) -> Answer:
        """Under our number nothing else comes; whose refusal it is cannot be known, so that it settles nothing."""
        self._counts.exceptions += 1
        return self._owe(ask, self._end(outcome, words))

    def _next(self, sent: bytes) -> Found | None:
        if self.pace.datagrams:
            if not self._datagrams:
                return None
            data = self._datagrams.popleft()
            found = self.framing.find(data, sent)
            return (
                found if found is not None and found.end == len(data) else Found(len(data), words="a broken datagram")
            )
        found = self.framing.find(bytes(self._received), sent)
        if found is not None:
            del self._received[: found.end]
        return found

    def _accepted(self, ask: Ask, found: Found, outcome: int, words: str) -> Answer:
        self._owed.pop(ask.unit, None)
        if self.pace.numbered:
            # Some gateways keep a late answer for whoever asks next, for hours; nothing stood before this one.
            for unit in list(self._owed):
                self._lapse(unit)
        self._heard.add(ask.unit)
        if outcome == Outcome.OK:
            self._counts.answers += 1
        else:
            self._counts.exceptions += 1
        data = found.pdu if ask.size == OPEN_SIZE else found.pdu[2:]
        answer = self._end(outcome, words)
        return answer._replace(data=data, at_us=answer.at_us - stood_still_us(_now_s(), self._ends_s, self._waits_us))

    def _wrong(self, ask: Ask, words: str) -> Answer:
        self._counts.protocol_errors += 1
        if self.pace.breaks:
            self.lost(words)
        self._quiet(self.pace.gap_s if self.pace.numbered else NOISE_QUIET_S)
        return self._owe(ask, self._end(Outcome.MALFORMED, words))

    def _given_up(self, ask: Ask, timeout_us: int) -> Answer:
        self._counts.timeouts += 1
        alive = ask.unit in self._heard
        self._heard.discard(ask.unit)
        self._quiet(min(timeout_us / 1e6, QUIET_MAX_S) if alive and not self.pace.numbered else self.pace.gap_s)
        words = f"no answer within {timeout_us / 1e6:g} s"
        if self.pace.breaks and self._received:
            # Half an answer is not waited for: what follows it could not be told from the next one's head.
            self.lost("an answer that was never completed")
        elif self.pace.breaks and self._shifted:
            # Ours will be handed to the next, and so for ever, unless a new connection finds the gateway's memory empty.
            self.lost("the gateway answered with what an earlier request had asked for")
        return self._owe(ask, self._end(Outcome.TIMED_OUT, words))

    def _end(self, outcome: int, words: str) -> Answer:
        return Answer(outcome, b"", self.clock.wall_us(), words)

    # ------------------------------------------------------------------------------------------------- what is owed

    def _owing(self, unit: int) -> dict[Shape, _Debt]:
        """What this unit owes; to be looked at only."""
        if not self.pace.numbered:
            self._lapse(unit)
        return self._owed.get(unit, {})

    def _lapse(self, unit: int) -> None:
        """What has not come in all this time comes no more."""
        owing = self._owed.get(unit)
        if owing is None:
            return
        now_s = _now_s()
        for shape in [shape for shape, debt in owing.items() if debt.until_s <= now_s]:
            del owing[shape]
        if not owing:
            del self._owed[unit]

    def _may_speak(self, unit: int) -> list[int]:
        """Units whose late answer could come as the answer of this one."""
        return list(self._owed) if self.pace.numbered else [unit]

    def _shapes(self, unit: int) -> set[Shape]:
        """What a late answer could look like that came as the answer of this unit."""
        return {shape for each in self._may_speak(unit) for shape in self._owing(each)}

    def _owe(self, ask: Ask, answer: Answer) -> Answer:
        debt = _Debt(_now_s() + OWED_FOR_S, noted=not self.pace.numbered)
        self._owed.setdefault(ask.unit, {})[ask.shape] = debt
        return answer

    def _paid(self, found: Found) -> bool:
        """Whether this frame is an answer that somebody still owed; then it is owed no longer.

        Behind a gateway that is not known: it may be another's, or of a shape that several owe. That it hands out late
        answers is known then, and noted of all whose answer this may be.
        """
        function = found.pdu[0]
        shape = (function, OPEN_SIZE if function == IDENTIFY else len(found.pdu) - 2)
        if shape not in self._shapes(found.unit):
            return False
        if self.pace.numbered:
            self._shifted = True
            for owing in self._owed.values():
                if shape in owing:
                    owing[shape] = owing[shape]._replace(noted=True)
        else:
            del self._owed[found.unit][shape]
        self._counts.late += 1
        return True

    # ----------------------------------------------------------------------------------------------------- silence

    def _quiet(self, span_s: float) -> None:
        self._silent_until_s = max(self._silent_until_s, _now_s() + span_s)

    async def _settle(self) -> bool:
        """Wait until the line may be used. True when bytes came that are no late answer."""
        stray, patience_s = False, max(_now_s(), self._silent_until_s) + BABBLE_S
        while True:
            while (found := self._next(b"")) is not None:
                if found.late:
                    self._counts.late += 1
                elif not found.pdu or not self._paid(found):
                    stray = True
            until_s = max(self._silent_until_s, self._heard_s + self.pace.gap_s)
            if not self.up or _now_s() >= until_s:
                break
            if _now_s() >= patience_s:
                self.lost("bytes come without a pause")
                break
            await self._wait(until_s)
        if self._received:
            stray = True
            self._received.clear()
        if stray:
            self._counts.protocol_errors += 1
            if self.pace.breaks:
                self.lost("bytes that nobody asked for")
        return stray

    async def _wait(self, until_s: float, give_way: bool = False) -> bool:
        """False when nothing has come by then, or when somebody else wants the line."""
        if give_way and self._waiting:
            return False
        self._news.clear()
        try:
            async with asyncio.timeout_at(until_s):
                await self._news.wait()
        except TimeoutError:
            return False
        return not (give_way and self._waiting)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


# -------------------------------------------------------------------------------------------- one session's share


@dataclass(slots=True, eq=False)
class WireLine:
    """What a session sees of a wire: the same promises as `modbus_line.Line`."""

    wire: Wire
    clock: Clock
    timeout_us: int
    counts: Counts
    silent_streak: int = 0
    _closed: bool = False

    @property
    def up(self) -> bool:
        return self.wire.up and not self._closed

    @property
    def fault(self) -> str:
        return self.wire.fault

    async def run(self, round_: Round, todo: deque[int], patience: Patience | None = None) -> None:
        """See Line.run."""
        wait_us, give_way = patience or (self.timeout_us, False)
        before: int | None = None
        while todo and self.up:
            number = todo.popleft()
            block = round_.plan.blocks[number]
            answer = await self.wire.exchange(of_block(block), wait_us, self.counts, give_way)
            if answer.stray and before is not None:
                self._settle(round_, before, Outcome.MALFORMED)
            before = None
            round_.outcomes[number], round_.stamps[number] = answer.outcome, answer.at_us
            if answer.resynced:
                round_.resynced.add(block.unit)
            if answer.outcome == Outcome.OK:
                round_.plan.payload[block.offset : block.offset + block.size] = answer.data
                before, self.silent_streak = number, 0
                continue
            round_.odd = True
            if answer.words:
                round_.words[number] = answer.words
            if answer.outcome == Outcome.TIMED_OUT:
                self._timed_out(round_, todo, block.unit)
            elif answer.outcome > 0 or answer.outcome == Outcome.MALFORMED:
                self.silent_streak = 0
        if before is not None and self.up and not self.wire.at_rest and await self.wire.settle(self.counts):
            self._settle(round_, before, Outcome.MALFORMED)

    def _timed_out(self, round_: Round, todo: deque[int], unit: int) -> None:
        self.silent_streak += 1
        round_.timeouts_left -= 1
        for number in list(todo):
            if round_.timeouts_left <= 0 or round_.plan.blocks[number].unit == unit:
                todo.remove(number)
                self._settle(round_, number, Outcome.SKIPPED)

    def _settle(self, round_: Round, number: int, outcome: Outcome) -> None:
        round_.outcomes[number], round_.stamps[number] = outcome, self.clock.wall_us()
        round_.odd = True

    async def close(self) -> None:
        """Leave it to the others; what was asked for is over."""
        self._closed = True
