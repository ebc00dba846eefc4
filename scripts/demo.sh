#!/bin/bash
# Run the demo in the foreground. On a terminal it gets a process group of its own, so that Ctrl-C ends the demo (which
# takes its plant and its broker along) and not `make`, which would call that an error.
[[ -t 0 ]] && set -m
"${VENV:-.venv}/bin/edge-agent" demo "$@"
