"""`edge-agent export`: the history and the warnings as Parquet or CSV, from an agent that runs or from its folder."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.cli.refused import refusal, unreadable
from edge_agent.cli.run import DEFAULT_CONFIG

if TYPE_CHECKING:
    from argparse import _SubParsersAction
    from collections.abc import Callable, Iterator

    from edge_agent.export import Exported, Place, Wanted

DONE, NOT_SO, WRONG_USE = 0, 1, 2


def add_export(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "export",
        help="the history and the warnings as Parquet or CSV",
        description="Write the readings and the warnings of a period. Parquet: machine=M/date=D/part-….parquet, whole UTC days, as "
        "pandas, Polars, DuckDB, Dask and Spark read it; written again it replaces itself, so give another choice of signals another "
        "folder. CSV: a file for each machine. The agent may run meanwhile. Exit status 1 when nothing was found.",
        epilog="Example: edge-agent export agent.yaml --from 2026-11-01 --to 2026-12-01 --out november",
    )
    parser.add_argument(
        "source", metavar="CONFIG|DATA_DIR", type=Path, nargs="?", default=DEFAULT_CONFIG,
        help=f"the configuration, or the agent's data directory; default: {DEFAULT_CONFIG}",
    )  # fmt: skip
    parser.add_argument(
        "--from", metavar="TIME", dest="begin", help="2026-11-01, or 2026-11-01T06:00:00Z; default: all"
    )
    parser.add_argument("--to", metavar="TIME", dest="end", help="up to, and without, this time; default: now")
    parser.add_argument("--machine", metavar="NAME", action="append", default=[], help="or a pattern; may be repeated")
    parser.add_argument("--signal", metavar="NAME", action="append", default=[], help="or a pattern; may be repeated")
    parser.add_argument("--format", choices=("csv", "parquet"), help="default: parquet where pyarrow is installed")
    parser.add_argument(
        "--out",
        metavar="FOLDER|URL|FILE.csv",
        default=".",
        help="a folder, a URL for fsspec, or one CSV file for one machine",
    )
    parser.add_argument("--agent", metavar="ID", help="the agent's id in the names of files, when it cannot be found")
    parser.add_argument("--json", action="store_true", help="what was written, as JSON")
    parser.set_defaults(run=export)


def export(arguments: argparse.Namespace) -> int:
    from edge_agent import export as exporting
    from edge_agent import lake
    from edge_agent.store import past

    folder: Path = arguments.source
    try:
        folder, agent = _source(arguments)
        wanted = _wanted(arguments, agent)
        out = _out(arguments, wanted, folder)
        done = exporting.export(folder, out, wanted, _progress(arguments))
        told = list(lines(done, arguments.out, folder))
    except past.UNREADABLE as error:
        return _failed(arguments, unreadable(error, folder), WRONG_USE)
    except (lake.NoLake, exporting.NoExport, ValueError) as error:
        return _failed(arguments, str(error), WRONG_USE)
    except OSError as error:
        return _failed(arguments, refusal(error, f"--out {exporting.shown(str(arguments.out))}"), WRONG_USE)
    if arguments.json:
        print(json.dumps({"ok": True, "agent": agent, "format": wanted.form, **asdict(done)}, ensure_ascii=False))
    else:
        for line in told:
            print(line)
    return DONE if done.files or done.kept else NOT_SO


def _source(arguments: argparse.Namespace) -> tuple[Path, str]:
    """(data directory, id of the agent). Raises ValueError in words."""
    from edge_agent import config
    from edge_agent.store import copy, disk, shelf

    source: Path = arguments.source
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder; name a CONFIG or a data directory")
    folder = source if source.is_dir() else config.data_dir_of(source, disk.FILE).absolute()
    if not any((folder / name).is_file() for name in (disk.FILE, shelf.FILE)):
        raise ValueError(f"{folder}: is not the data directory of an agent (no {disk.FILE}, no {shelf.FILE})")
    if arguments.agent:
        return folder, str(arguments.agent)
    kept = copy.kept_config(folder / disk.FILE) if (folder / disk.FILE).exists() else None
    try:
        if kept is not None:
            return folder, config.unpack(kept).agent.id
        if not source.is_dir():
            return folder, config.load(source).config.agent.id
    except (ValueError, config.ConfigErrors):
        pass
    raise ValueError(f"{folder} does not say which agent's it is: name it with --agent ID")


def _wanted(arguments: argparse.Namespace, agent: str) -> "Wanted":
    from edge_agent import lake
    from edge_agent.export import CSV, PARQUET, Wanted
    from edge_agent.store.disk import NEVER_US

    form = arguments.format or (PARQUET if lake.is_here() and not str(arguments.out).endswith(".csv") else CSV)
    begin = 0 if arguments.begin is None else time_us("--from", arguments.begin)
    end = NEVER_US if arguments.end is None else time_us("--to", arguments.end)
    if end <= begin:
        raise ValueError(f"--to {arguments.end} is not after --from {arguments.begin}")
    return Wanted(agent, form, tuple(arguments.machine), tuple(arguments.signal), begin, end)


def _out(arguments: argparse.Namespace, wanted: "Wanted", folder: Path) -> "Place":
    """Where the files go. folder: the data directory. Raises NoExport and NoHistory in words."""
    from edge_agent.export import CSV, NoExport, OneFile, machines_of, place_of

    if not str(arguments.out).endswith(".csv"):
        return place_of(str(arguments.out))
    if wanted.form != CSV or len(wanted.machines) != 1:
        raise NoExport(f"{arguments.out} is one CSV file: name the one --machine whose readings go there")
    if Path(arguments.out).is_dir():
        raise NoExport(
            f"{arguments.out} is a folder: name a CSV file, or a folder that is not called like one, with --out"
        )
    (name,) = wanted.machines
    meant = machines_of(folder, wanted)
    if len(meant) > 1:
        raise NoExport(
            f"{arguments.out} is one CSV file, and --machine {name} means {', '.join(meant)}: name one of them, or a folder "
            "with --out"
        )
    return OneFile(Path(arguments.out), meant[0] if meant else name)


def time_us(option: str, text: str) -> int:
    """UTC µs of a date or a time; without a zone it is UTC. Raises ValueError in words."""
    from datetime import UTC, datetime, timedelta

    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is None:
            found = found.replace(tzinfo=UTC)
        return (found - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        raise ValueError(f"{option} {text!r} is no time: write 2026-11-01 or 2026-11-01T06:00:00Z") from None


def _progress(arguments: argparse.Namespace) -> "Callable[[str], None]":
    """On a terminal the day that is being written, in its place."""
    if arguments.json or not sys.stderr.isatty():
        return lambda _: None
    return lambda day: print(f"\r{day}  ", end="", file=sys.stderr, flush=True)


def _failed(arguments: argparse.Namespace, error: str, status: int) -> int:
    if arguments.json:
        print(json.dumps({"ok": False, "error": error}, ensure_ascii=False))
    print(f"edge-agent: {error}", file=sys.stderr)
    return status


def lines(done: "Exported", out: str, folder: Path) -> "Iterator[str]":
    """What was written, for people. folder: the data directory."""
    from edge_agent import export as exporting

    if not done.files and not done.kept:
        yield f"nothing was found for this period and these names: {exporting.what_there_is(folder)}"
        return
    files = "1 file" if len(done.files) == 1 else f"{len(done.files)} files"
    if out.endswith(".csv"):
        yield f"{done.rows} rows in {out}; the warnings go along where --out is a folder"
    else:
        yield f"{done.rows} rows and {done.warnings} warning events in {files} in {out}"
    for name in done.kept:
        yield f"  kept as it was: {name} has more than the history still has"
    if done.left_out:
        yield f"  {done.left_out} damaged pieces of the history could not be read; their readings are missing"
