#!/bin/bash
# Run the demo in the foreground. On a terminal it gets a process group of its own, so that Ctrl-C ends the demo (which
# takes its plant and its broker along) and not `make`, which would call that an error.
demo=("${VENV:-.venv}/bin/edge-agent" demo "$@")
[[ -t 0 ]] || exec "${demo[@]}"
set -m
"${demo[@]}"
