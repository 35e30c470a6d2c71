#!/usr/bin/env bash
# Makes the virtual environment at $1, installs what constraints.txt pins, and says how long it took.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 python=${PYTHON:-python3} start=$SECONDS
if ! "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))'; then
  echo "setup: needs Python 3.10 to 3.13, found $("$python" --version 2>&1);" \
    "name another one with: make PYTHON=python3.12 ..." >&2
  exit 1
fi
rm -f "$venv/.ready"
if [ ! -x "$venv/bin/python" ]; then
  "$python" -m venv "$venv" || {
    echo "setup: there is no venv module here; on Debian and Ubuntu: apt-get install python3-venv" >&2
    rm -rf "$venv"; exit 1
  }
fi
echo "setup: installing torch, Jupyter and the rest into $venv (about 7 GB, a few minutes)"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-warn-script-location -c constraints.txt -e '.[dev]'
# The kernel of this environment. It does not warn at every start that its port on 127.0.0.1 is not encrypted.
# A notebook of nbs/ works in the checkout's folder in JupyterLab too, so that runs/ and data/ are the same for all.
# Its threads sleep while they wait: on shared cores, spinning threads made the same training several times slower.
"$venv/bin/python" - "$venv/share/jupyter/kernels/python3/kernel.json" <<'END'
import json, sys
path = sys.argv[1]
spec = json.load(open(path))
here = "import os; os.path.basename(os.getcwd()) == 'nbs' and os.path.isfile('../settings.ini') and os.chdir('..')"
kept = [a for a in spec['argv'] if not a.startswith(('--log-level', '--IPKernelApp.exec_lines'))]
spec['argv'] = [*kept, '--log-level=ERROR', f'--IPKernelApp.exec_lines={here}']
spec['env'] = {**spec.get('env', {}), 'OMP_WAIT_POLICY': 'PASSIVE'}
json.dump(spec, open(path, 'w'), indent=1)
END
touch "$venv/.ready"
echo "setup: done in $((SECONDS - start)) s"
