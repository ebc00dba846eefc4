"""`edge-agent browse URL`: what an OPC UA server has; `edge-agent scan opcua URL` does the same."""

from typing import TYPE_CHECKING

from edge_agent.cli import scan

if TYPE_CHECKING:
    import argparse
    from argparse import _SubParsersAction

KIND = "opcua"


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
    scan.add_options(parser, KIND)
    parser.set_defaults(run=scan.scan, kind=KIND)
