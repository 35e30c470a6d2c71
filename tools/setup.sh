#!/usr/bin/env bash
# Makes the virtual environment at $1 and installs what constraints.txt pins. Says what it does and how long it takes.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 python=${PYTHON:-python3} start=$SECONDS
if ! "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))'; then
  echo "setup: needs Python 3.10 to 3.13, found $("$python" --version 2>&1); name another with: make PYTHON=python3.12 ..." >&2; exit 1
fi
rm -f "$venv/.ready"
if [ ! -x "$venv/bin/python" ]; then
  "$python" -m venv "$venv" || { echo "setup: no venv module here; on Debian and Ubuntu: apt-get install python3-venv" >&2; rm -rf "$venv"; exit 1; }
fi
echo "setup: installing torch, Jupyter and the rest into $venv (about 7 GB, a few minutes)"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-warn-script-location -c constraints.txt -e '.[dev]' 2> >(grep -v 'is ignored: it is neither' >&2)
touch "$venv/.ready"
echo "setup: done in $((SECONDS - start)) s"
