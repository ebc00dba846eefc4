"""`edge-agent run`: the daemon, until it is told to stop."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

DEFAULT_CONFIG = Path("/etc/edge-agent/agent.yaml")
LEVELS = ("debug", "info", "warning", "error")


def add_run(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "run",
        help="the daemon: read, judge, store and publish",
        description="Read, judge, store and publish until SIGTERM or Ctrl-C. SIGHUP reloads the configuration.",
    )
    parser.add_argument(
        "config", metavar="CONFIG", type=Path, nargs="?", default=DEFAULT_CONFIG, help=f"default: {DEFAULT_CONFIG}"
    )
    add_log_options(parser)
    parser.set_defaults(run=run)


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """`--log-level` and `--log-form`, the same for every command that runs an agent."""
    parser.add_argument("--log-level", choices=LEVELS, default="info", help="the least that is logged (%(default)s)")
    parser.add_argument(
        "--log-form",
        choices=("auto", "console", "json"),
        default="auto",
        help="for people, or one JSON object a line; auto: JSON unless stderr is a terminal",
    )


def import_structlog() -> None:
    """Without rich, which it takes in wherever another package has brought it: a tenth of a start, for tracebacks not ours."""
    import importlib
    import sys

    if "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        importlib.import_module("structlog")
    finally:
        del sys.modules["rich"]


def run(arguments: argparse.Namespace) -> int:
    import asyncio
    import gc

    gc.disable()  # nothing that is made before the agent is ready is garbage; it sees to the rest
    import_structlog()
    from edge_agent import agent, clock, service

    service.configure_logging(arguments.log_level, clock.SystemClock(), form=arguments.log_form)

    async def until_stopped() -> int:
        stop = asyncio.Event()
        with service.stop_on_signals(stop):
            return await agent.run(arguments.config, stop=stop)

    try:
        return asyncio.run(until_stopped())
    finally:
        service.flush_suppressed()
