"Clean every notebook: nbdev_clean, which keeps the tags papermill needs but outputs too; then drop the outputs."
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

subprocess.run([str(Path(sys.executable).with_name('nbdev_clean'))], cwd=ROOT, check=True)
for path in (ROOT / 'nbs').rglob('*.ipynb'):
    if any(part.startswith('.') for part in path.relative_to(ROOT).parts): continue
    notebook = json.loads(path.read_text(encoding='utf-8'))
    code = [c for c in notebook['cells'] if c['cell_type'] == 'code']
    if not any(c['outputs'] or 'widgets' in notebook['metadata'] for c in code): continue
    for c in code: c['outputs'], c['execution_count'] = [], None
    notebook['metadata'].pop('widgets', None)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + '\n', encoding='utf-8')
