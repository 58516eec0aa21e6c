"""``penstock top``: lanes, models, queues and organisations, live."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from penstock.cli import app
from penstock.cli.options import DEFAULT_FILES, ConfigurationFiles, DataDirectory, load_with_places
from penstock.config.notation import parse_duration
from penstock.console.screen import screen
from penstock.console.top import top_screen
from penstock.errors import InvalidRequest
from penstock.lanes.activity import Activity
from penstock.wiring.topping import Looking, pages_of

KEY_S = 0.1
_ENDS = (b"q", b"Q", b"\x03", b"\x04", b"")
EVERY_MS_MIN = 200


@app.command()
def top(
    once: Annotated[bool, typer.Option("--once", help="Print one screen and end; for scripts.")] = False,
    every: Annotated[str, typer.Option(metavar="DURATION", help="From one look to the next.")] = "1s",
    metrics: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="An operations port to read; may be given again. Default: those found here."),
    ] = None,
    config: ConfigurationFiles = DEFAULT_FILES,
    data: DataDirectory = None,
) -> None:
    """Watch lanes, models, queues and organisations, a look each second. `q` or Ctrl-C ends.

    What flows is read from metrics pages: of the service that runs on the data directory, of every process of `penstock
    up`, or of those that --metrics names. Queues come from the database, what is held from the quota.

    Examples:

    - `penstock top`
    - `penstock top --once --every 5s`
    - `penstock top --metrics http://api-0:8081 --metrics http://executor-0:8081 -c penstock.yaml`
    """
    every_ms = parse_duration(every)
    if every_ms < EVERY_MS_MIN:
        raise InvalidRequest(f"--every: found {every}, wanted at least {EVERY_MS_MIN}ms")
    configuration, places = load_with_places(config, data)
    looking = Looking(configuration, places, pages_of(configuration, places, metrics or ()))
    if once:
        looking.begin()
        time.sleep(every_ms / 1000)
        screen().print(top_screen(looking.look(), clock=_clock()))
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InvalidRequest("this is no terminal; add --once for one screen")
    _watch(looking, every_s=every_ms / 1000)


def _watch(looking: Looking, *, every_s: float) -> None:
    console = Console(highlight=False)
    with (
        ThreadPoolExecutor(max_workers=1) as pool,
        _keys(),
        Live(Text("looking..."), console=console, screen=True, auto_refresh=False) as live,
    ):
        pool.submit(looking.begin)
        shown: Activity | None = None
        look: Future[Activity] | None = None
        next_s = time.monotonic() + every_s
        size = shutil.get_terminal_size()
        while not _is_ended():
            if look is None and time.monotonic() >= next_s:
                look, next_s = pool.submit(looking.look), time.monotonic() + every_s
            is_new = look is not None and look.done()
            if look is not None and is_new:
                shown, look = look.result(), None
            if shown is not None and (is_new or shutil.get_terminal_size() != size):
                size = shutil.get_terminal_size()
                live.update(_page(shown, size.lines), refresh=True)


def _page(shown: Activity, lines: int) -> Group:
    return Group(top_screen(shown, clock=_clock(), rows_max=lines - 1), Text("q ends", style="dim"))


def _is_ended() -> bool:
    """Whether a key that ends was pressed, within a tenth of a second."""
    readable, _, _ = select.select([sys.stdin], [], [], KEY_S)
    return bool(readable) and os.read(sys.stdin.fileno(), 1) in _ENDS


@contextmanager
def _keys() -> Iterator[None]:
    """Keys one by one and unseen, Ctrl-C as a key among them; the terminal as it was afterwards, whatever happens."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        tty.setcbreak(descriptor)
        mode = termios.tcgetattr(descriptor)
        mode[3] &= ~termios.ISIG
        termios.tcsetattr(descriptor, termios.TCSADRAIN, mode)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _clock() -> str:
    return datetime.now(UTC).strftime("%H:%M:%S")
