"""A configuration that came into force, as a command in its place among the frames: so the past can be judged again.

Rule: it is a command like any other, so that a release that does not know it reads the journal all the same.
"""

import base64
import zlib

from edge_agent.records import Command

CONFIGURE = "configure"


def configure(text: str, sha: str, ts: int, t: int, *, start: bool) -> Command:
    """text: as `config.pack` wrote it. start: the agent has started with it (else it was taken over while it ran)."""
    packed = base64.b64encode(zlib.compress(text.encode())).decode()
    return Command(CONFIGURE, ts, t, sha, "", "", {"packed": packed, "start": start})


def text_of(command: Command) -> str:
    """The configuration's text. Raises ValueError or KeyError when the command holds none."""
    try:
        return zlib.decompress(base64.b64decode(command.arguments["packed"])).decode()
    except zlib.error as error:
        raise ValueError(str(error)) from error


def is_start(command: Command) -> bool:
    return bool(command.arguments.get("start"))
