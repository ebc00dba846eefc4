"""A configuration that came into force, as a command in its place among the frames: so the past can be judged again.

Rule: it is a command like any other, so that a release that does not know it reads the journal all the same.
"""

from edge_agent.records import Command

CONFIGURE = "configure"


def configure(text: str, sha: str, ts: int, t: int, *, start: bool) -> Command:
    """text: as `config.pack` wrote it. start: the agent has started with it (else it was taken over while it ran)."""
    return Command(CONFIGURE, ts, t, sha, "", "", {"config": text, "start": start})


def text_of(command: Command) -> str:
    """The configuration's text, for `config.unpack`; '' when the command holds none."""
    return str(command.arguments.get("config", ""))


def is_start(command: Command) -> bool:
    return bool(command.arguments.get("start"))
