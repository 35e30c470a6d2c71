#!/usr/bin/env bash
# Serves explore_run without its code, on 127.0.0.1 and behind a token: tools/app.sh RUN [further options of voila]
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
run=${1:-}; shift || true
if [ -z "$run" ]; then echo "app: name a finished run, such as: make app RUN=runs/demo/run" >&2; exit 2; fi
for name in config.json predictions.npy embeddings.npy; do
  [ -f "$run/$name" ] || { echo "app: $run has no $name, so it is not the folder of a finished run" >&2; exit 2; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
papermill --prepare-only --no-progress-bar nbs/explore_run.ipynb "$work/explore_run.ipynb" \
  -p run_dir "$(realpath "$run")" -p root "$(realpath "$(dirname "$run")")" > "$work/papermill.log" 2>&1 \
  || { cat "$work/papermill.log" >&2; exit 1; }
python tools/app_notebook.py "$work/explore_run.ipynb" "$run"
# The template of JupyterLab's look, without the two style sheets of icons that it would fetch from another host.
template=$work/jupyter/voila/templates/offline
mkdir -p "$template"
prefix=$(python -c 'import sys; print(sys.prefix)')
sed '/cdn.jsdelivr/d' "$prefix/share/jupyter/voila/templates/lab/index.html.j2" > "$template/index.html.j2"
echo '{"base_template": "lab"}' > "$template/conf.json"
export JUPYTER_PATH="$work/jupyter${JUPYTER_PATH:+:$JUPYTER_PATH}"
voila "$work/explore_run.ipynb" --template=offline --Voila.ip=127.0.0.1 --token "$@" &
voila=$!
trap 'kill $voila 2>/dev/null; wait $voila; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
wait $voila
