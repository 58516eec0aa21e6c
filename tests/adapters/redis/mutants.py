"""Are the tests of the function library good enough? Break it in one place at a time, and see whether they notice.

One mutant for each comparison and each write of ``penstock.lua``: see ``lua_sites``. Each is loaded into a Redis that
is there already, and asked what the library was asked, and has answered, before it was broken: the histories of the
differential test first, for they notice most, then what is no call. What is left meets other tests of the adapter.

    python -m tests.adapters.redis.mutants --jobs 2 --only finish

A mutant that survives is killed by a better test, or explained in ``mutants_explained.txt``, as those of the model are.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import struct
import sys
import tempfile
import threading
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hiredis

from penstock.adapters.redis import library
from penstock.adapters.redis.client import pack
from penstock.adapters.redis.library import SOURCE
from penstock.adapters.redis.translating import keys_of, outbox_key, partition_of, write_call
from penstock.quota import Inspect
from penstock.quota.counters import Counter, roll
from penstock.quota.definitions import Kind
from tests.adapters.redis.clocked import clocked, set_time
from tests.adapters.redis.crowd.line import Line
from tests.adapters.redis.desks import pages
from tests.adapters.redis.lua_sites import each_broken
from tests.adapters.redis.test_arguments import WRONG
from tests.adapters.redis.test_differential import raw_counter, spending
from tests.adapters.redis.test_mangled_arguments import drawn
from tests.quota.edges import edges
from tests.quota.histories import ORGANISATIONS, T0_MS, history
from tests.quota.mutants import Mutant, report, survivors_of
from tests.system.services import Redis

HERE = Path(__file__).parent
EXPLAINED = HERE / "mutants_explained.txt"
FILE = "penstock.lua"
CALLS, HISTORIES, AT_ONCE = 1_250, 24, 250
BLANK = Counter(limit="", metric="", kind=Kind.WINDOW, unit=0, period_ms=0, anchor_ms=0, cap=0)
OTHERS_S = 600
BOUND_S = 30.0  # a mutant that loops for ever is noticed too
OTHER_TESTS = tuple(
    f"tests/adapters/redis/test_{each}.py"
    for each in ("arguments", "restoring", "outbox", "starting", "users", "pages")
)


@dataclass(frozen=True, slots=True)
class Script:
    """What is asked of a library, in portions; after each portion its counters are looked at too."""

    portions: tuple[tuple[bytes, ...], ...]


def scripts() -> list[Script]:
    """Those that notice most come first."""
    found = [_script(history(seed, CALLS)) for seed in range(1, HISTORIES)]
    found.insert(3, _refused())
    found.insert(4, _script(edges(), look_every=1))
    return [*found, _script(history(0, CALLS)), *map(_mangled, range(1, 5)), _script(spending(0))]


def _script(calls: Iterable[tuple[Any, int]], look_every: int = 20) -> Script:
    commands = list[bytes]()
    told_ms = -1
    for number, (call, time_ms) in enumerate(calls):
        if time_ms != told_ms:
            commands.append(set_time(time_ms))
            told_ms = time_ms
        commands.append(write_call(call))
        if number % look_every == 0:
            whole = Inspect(organisation=call.organisation, caller_now_ms=time_ms)
            commands += map(write_call, (whole, *pages(whole, number)))
    return Script(tuple(tuple(commands[at : at + AT_ONCE]) for at in range(0, len(commands), AT_ONCE)))


def _mangled(seed: int) -> Script:
    """What is nearly a call."""
    commands = list[bytes]()
    for time_ms, (function, keys, text) in drawn(seed):
        commands += [set_time(time_ms), pack("FCALL", f"penstock_{function}", len(keys), *keys, text)]
    return Script(tuple(tuple(commands[at : at + AT_ONCE]) for at in range(0, len(commands), AT_ONCE)))


def _refused() -> Script:
    """Whatever is no call, and keys of somebody else."""
    own, others = keys_of("acme"), keys_of("zeta")
    words: list[tuple[Any, ...]] = []
    for operation, argument, _ in WRONG.values():
        text = argument if isinstance(argument, str) else json.dumps(argument)
        words.append((f"penstock_{operation}", "5", *own, text))
    lines = (HERE / "arguments_once_wrong.jsonl").read_bytes().splitlines()
    for line in map(json.loads, lines):
        words.append((f"penstock_{line['function']}", "5", *own, line["argument"].encode("latin-1")))
    look = json.dumps({"organisation": "acme", "caller_now_ms": T0_MS, "reservation": "a"})
    for wrong in range(5):
        keys = [*own[:wrong], others[wrong], *own[wrong + 1 :]]
        words.append(("penstock_look", "5", *keys, look))
    words += [("penstock_look", "4", *own[:4], look), ("penstock_look", "0", look), ("penstock_look", "5", *own)]
    return Script(((set_time(T0_MS), *(pack("FCALL", *each) for each in words)),))


def _seen(reply: Any) -> Any:
    """A reply as it is compared. Lua's own words name lines, which a mutant moves."""
    return re.sub(r"user_function:\d+", "", str(reply)) if isinstance(reply, Exception) else reply


class Asker:
    """One Redis, into which one broken library after the other is loaded."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.started = 0
        self._begin()

    def _begin(self) -> None:
        self.started += 1
        self.service = Redis(self.place / str(self.started), "--appendonly", "no")
        self.service.start()
        self.line = Line(self.service.port)
        self.line.socket.settimeout(BOUND_S)

    def close(self) -> None:
        self.line.close()
        self.service.stop()

    def replies(self, text: str, script: Script, expected: Sequence[Any] | None = None) -> list[Any] | None:
        """All that is seen, or None as soon as that is something else than expected, or nothing at all."""
        found: list[Any] = []
        try:
            self.line.ask([pack("FLUSHALL"), pack("FUNCTION", "LOAD", "REPLACE", clocked(text))])
            for portion in script.portions:
                found.append([_seen(each) for each in self.line.hear(portion)])
                found.append([self._counters(name) for name in ORGANISATIONS])
                if expected is not None and found != list(expected[: len(found)]):
                    return None
            for name in ORGANISATIONS:
                (entries,) = self.line.ask([pack("XRANGE", outbox_key(partition_of(name)), "-", "+")])
                found.append([fields for _, fields in entries])
        except OSError:  # a TimeoutError is one: Redis is busy for ever, or gone
            self.line.close()
            self.service.kill()
            self._begin()
            return None
        except (hiredis.HiredisError, struct.error, ValueError, IndexError, OverflowError):
            return None
        return None if expected is not None and found != list(expected) else found

    def _counters(self, organisation: str) -> Any:
        (flat,) = self.line.ask([pack("HGETALL", keys_of(organisation)[0])])
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        clock_ms = int(fields.get(b"_clk", 0))
        return clock_ms, {name: _rolled(raw, clock_ms) for name, raw in fields.items() if not name.startswith(b"_")}


def _rolled(raw: bytes, clock_ms: int) -> Any:
    counter = raw_counter(raw, BLANK)
    roll(counter, clock_ms)
    return counter


def all_mutants(only: str | None = None) -> list[Mutant]:
    """Those of every function of the library, or of one."""
    return [
        Mutant(FILE, line, function, mutation, text)
        for line, function, mutation, text in each_broken(SOURCE)
        if only in (None, function)
    ]


class Trial:
    """Every mutant, taken by one asker after the other."""

    def __init__(self, mutants: Sequence[Mutant], expected: Sequence[tuple[Script, Sequence[Any]]]) -> None:
        self.waiting = deque(mutants)
        self.count = len(mutants)
        self.expected = expected
        self.survivors: list[Mutant] = []
        self.killed_by: Tally[int] = Tally()
        self.failures: list[BaseException] = []
        self._began_s = time.monotonic()

    def run(self, askers: Sequence[Asker]) -> list[Mutant]:
        """Those that nobody noticed, in the order of the text."""
        threads = [threading.Thread(target=self._work, args=(asker,)) for asker in askers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failures:
            raise self.failures[0]
        sys.stdout.write("\n")
        return sorted(self.survivors, key=lambda mutant: mutant.line)

    def _work(self, asker: Asker) -> None:
        try:
            while self.waiting:
                mutant = self.waiting.popleft()
                killer = next(
                    (n for n, (s, e) in enumerate(self.expected) if asker.replies(mutant.source, s, e) is None), None
                )
                if killer is None:
                    self.survivors.append(mutant)
                else:
                    self.killed_by[killer] += 1
                self._tell()
        except BaseException as error:
            self.failures.append(error)
            self.waiting.clear()
            raise

    def _tell(self) -> None:
        done = len(self.survivors) + self.killed_by.total()
        left_s = (time.monotonic() - self._began_s) / done * (self.count - done)
        sys.stdout.write(
            f"\r\033[K{done}/{self.count} mutants, {self.killed_by[0]} killed by the first script, "
            f"{len(self.survivors)} left to other tests, {left_s:.0f} s left "
        )
        sys.stdout.flush()


def in_place_of_the_library(mutant: Mutant) -> Mutant:
    """As the Python module that reads the library's text, so that every test of the adapter loads the broken one."""
    source = Path(library.__file__).read_text()
    changed = re.sub(
        r"^SOURCE: Final = .*$", lambda _: f"SOURCE: Final = {mutant.source!r}", source, flags=re.MULTILINE
    )
    return replace(mutant, source=changed, module=library.__name__)


def main() -> int:
    """Exit code 1 if a mutant survives that nobody explained, or an explanation explains nothing any more."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time (default: every core)")
    parser.add_argument("--only", metavar="FUNCTION", help="those of one function of the library, e.g. finish")
    arguments = parser.parse_args()
    mutants = all_mutants(arguments.only)
    if not mutants:
        parser.error(f"{arguments.only} is no function of {FILE}")
    with tempfile.TemporaryDirectory(prefix="penstock-mutants-") as place:
        askers = [Asker(Path(place) / str(number)) for number in range(arguments.jobs)]
        try:
            expected = [(script, askers[0].replies(SOURCE, script) or ()) for script in scripts()]
            left = Trial(mutants, expected).run(askers)
        finally:
            for asker in askers:
                asker.close()
    for mutant in left:
        sys.stdout.write(f"left to other tests: line {mutant.line} of {mutant.key}\n")
    sound = Mutant(FILE, 1, "", "nothing broken", SOURCE)
    silent = Mutant(FILE, 1, "", "everything broken", SOURCE + "\nerror('broken')\n")
    controls = [in_place_of_the_library(each) for each in (sound, silent)]
    if left and [each.key for each in survivors_of(controls, 1, OTHER_TESTS, bound_s=OTHERS_S)] != [sound.key]:
        parser.error("the other tests must pass on the library as it is, and fail on one that does not load")
    broken = [in_place_of_the_library(each) for each in left]
    survived = survivors_of(broken, arguments.jobs, OTHER_TESTS, bound_s=OTHERS_S)
    return report(mutants, survived, EXPLAINED)


if __name__ == "__main__":
    sys.exit(main())
