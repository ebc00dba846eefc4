"""`edge-agent browse URL`: what an OPC UA server has; `edge-agent scan opcua URL` does the same."""

from typing import TYPE_CHECKING

from edge_agent.cli import scan

if TYPE_CHECKING:
    import argparse
    from argparse import _SubParsersAction

KIND = "opcua"
OPTIONS = (
    ("search", "TEXT", "only what has this text in its path, name, title or description"),
    ("under", "NODE", "only below this node: a path such as Plant/Line1, or a NodeId"),
    ("depth", "N", "levels below the start"),
    ("max", "N", "nodes, then it is cut (5000)"),
    ("all", None, "also the server's own objects and diagnostics (namespace 0)"),
    ("security", "POLICY/MODE", "none, or POLICY/MODE such as Basic256Sha256/SignAndEncrypt"),
    ("user", "NAME", "user name; without one the session is anonymous"),
    ("password_file", "FILE", "file with the user's password"),
    ("timeout", "TIME", "how long the server may take for an answer (4s)"),
    ("data_dir", "FOLDER", "its pki folder keeps the certificates (./data)"),
)
"""Those of the kind, once more: `--help` loads no driver. A test compares them."""


def add_browse(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "browse",
        help="show what an OPC UA server has",
        description="Show the address space of an OPC UA server: names, values, units, types and NodeIds. It only reads, "
        "one request at a time. Ctrl-C ends it and shows what was found so far. Exit status 3 when nobody answers.",
        epilog="Example: edge-agent browse opc.tcp://192.0.2.20:4840 --under Plant/Line1 --yaml > first.yaml",
    )
    parser.add_argument("url", metavar="URL", help="such as opc.tcp://192.0.2.20:4840")
    scan.add_forms(parser)
    for name, metavar, words in OPTIONS:
        scan.add_option(parser, name, metavar, words)
    parser.set_defaults(run=scan.scan, kind=KIND)
