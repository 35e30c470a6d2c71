"The HTML copy of a notebook: complete, interactive, and silent on the network."
import json, re

import numpy as np
import pytest

from nmc_workbench.reports import html as report
from nmc_workbench.core.errors import InputError

nbformat = pytest.importorskip('nbformat')
pytest.importorskip('nbconvert')
v4 = nbformat.v4
HOSTILE = '</script><script>alert("x")</script>'

@pytest.fixture(scope='module')
def bundle():
    pytest.importorskip('plotly')
    from nmc_workbench.plotting.confusion import confusion_matrix
    y = np.arange(40) % 4
    return confusion_matrix(y, y, [HOSTILE, '"quoted" \'q\'', '<b>cat</b> & dog', 'ship'])._repr_mimebundle_()

def page(tmp_path, *cells, **more):
    notebook = v4.new_notebook(cells=list(cells), **more)
    nbformat.write(notebook, tmp_path / 'run.ipynb')
    return report.html_copy(tmp_path / 'run.ipynb').read_text()

def shown(data, metadata=None):
    output = v4.new_output('display_data', data=data, metadata=metadata or {})
    return v4.new_code_cell('show()', outputs=[output])

def own(html):
    "The page without the scripts it runs: plotly's source mentions addresses that it never asks for."
    return re.sub(r'<script>.*?</script>', '', html, flags=re.S)

LINKS = '''# Title

![badge](https://x.org/b.svg) $a^2$ [paper](https://x.org/p)

```mermaid
graph
```'''
LOADS = '''<script src="https://x.org/a.js"></script>
<link rel="stylesheet" href="https://x.org/a.css"><iframe src="//x.org"></iframe>
<img srcset="https://x.org/2x.png 2x" src="https://x.org/1.png"><video src="https://x.org/v"></video>
<table><tr><td>kept</td></tr></table>
<style>@import url(https://x.org/c.css); td { background: url("https://x.org/d.png") }</style>'''


def test_nothing_outside_is_referenced(tmp_path, bundle):
    html = own(page(tmp_path, v4.new_markdown_cell(LINKS), v4.new_code_cell('1'), shown(*bundle),
                    shown({'text/html': LOADS})))
    assert not re.findall(r'\b(?:src|srcset|data|poster|background)\s*=\s*["\']?\s*(?:https?:)?//', html)
    assert not re.findall(r'<(?:link|iframe|object|embed|base|video)\b', html)
    assert not re.findall(r'url\(\s*["\']?(?:https?:)?//|@import', html)
    assert {m for m in re.findall(r'<(\w+)[^>]*\shref="https?:', html)} == {'a'}       # links load only when followed
    assert 'kept' in html and '>badge</a>' in html and 'cdnjs' not in html and 'require' not in html

def test_the_browser_may_load_nothing_and_run_two_scripts(tmp_path, bundle):
    import base64, hashlib
    html = page(tmp_path, shown(*bundle))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    scripts = re.findall(r'<script>(.*?)</script>', html, flags=re.S)
    hashes = {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts}
    assert len(scripts) == 2 and "default-src 'none'" in policy
    assert set(re.findall(r"'sha256-([^']*)'", policy)) == hashes
    assert html.index('Content-Security-Policy') < html.index('<title') and 'http' not in policy

def test_one_plotly_for_many_pictures_and_none_for_none(tmp_path, bundle):
    from plotly.offline import get_plotlyjs
    many = page(tmp_path, *[shown(*bundle) for _ in range(3)])
    assert many.count(get_plotlyjs()) == 1 and many.count('class="interactive"') == 3
    few = page(tmp_path, shown({'image/png': 'AA=='}))
    assert '<script' not in few and "script-src 'none'" in few
    assert len(few) < 30_000 and 'data:image/png;base64,AA==' in few

def test_interactive_first_and_the_still_without_scripts(tmp_path, bundle):
    html = own(page(tmp_path, shown(*bundle)))
    figure, = re.findall(r'<script type="application/json">(.*?)</script>', html, flags=re.S)
    assert json.loads(figure) == bundle[0]['application/vnd.plotly.v1+json']
    still, = re.findall(r'<noscript>(.*?)</noscript>', html, flags=re.S)
    assert bundle[0]['image/png'] in still and 'alt="Picture: clusters against classes' in still
    assert f'width="{bundle[1]["image/png"]["width"]}"' in still
    assert html.count(bundle[0]['image/png']) == 1

def test_hostile_names_are_text(tmp_path, bundle):
    html = own(page(tmp_path, v4.new_code_cell(f'names = [{HOSTILE!r}]'), shown(*bundle),
                    shown({'text/plain': HOSTILE}), shown({'image/png': 'AA==', 'text/plain': '" onload="alert(1)'})))
    from bs4 import BeautifulSoup
    tags = BeautifulSoup(html, 'html.parser').find_all(True)
    assert not [a for t in tags for a in t.attrs if a.startswith('on')]
    assert [t['type'] for t in tags if t.name == 'script'] == ['application/json']
    figure, = re.findall(r'<script type="application/json">(.*?)</script>', html, flags=re.S)
    assert '<' not in figure

def test_a_hostile_figure_cannot_end_its_element(tmp_path):
    name = HOSTILE + '<!--'
    html = page(tmp_path, shown({'application/vnd.plotly.v1+json': dict(data=[dict(name=name)], layout={})}))
    figure = json.loads(re.search(r'json">(.*?)</script>', html, re.S)[1])
    assert len(re.findall(r'<script>', html)) == 2 and figure['data'][0]['name'] == name

def test_without_plotly_the_stills_remain(tmp_path, bundle, monkeypatch):
    import builtins
    real = builtins.__import__
    def missing(name, *args, **kwargs):
        if name.split('.')[0] == 'plotly': raise ImportError(name)
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, '__import__', missing)
    html = page(tmp_path, shown(*bundle))
    assert 'class="interactive"' not in html and '<script' not in html and bundle[0]['image/png'] in html

def test_code_and_parameters_are_folded_and_what_this_run_was_given_is_open(tmp_path):
    given = v4.new_code_cell('epochs = 3', metadata=dict(tags=['parameters']))
    injected = v4.new_code_cell('epochs = 5', metadata=dict(tags=['injected-parameters']))
    html = page(tmp_path, v4.new_code_cell('x = 1'), given, injected, v4.new_code_cell('  '))
    folds = re.findall(r'<details class="source"( open="")?><summary>(\w+)</summary>', html)
    assert folds == [('', 'code'), ('', 'parameters'), (' open=""', 'parameters')]

def test_outputs_of_every_kind(tmp_path):
    bar = v4.new_output('stream', name='stderr', text='\r  0%|  | 0/9\r 50%|# | 5/9\r100%|##| 9/9\n')
    text = v4.new_output('stream', name='stdout', text='a < b')
    error = v4.new_output('error', ename='E', evalue='v', traceback=['\x1b[31mInputError\x1b[0m: n=9 < 10'])
    view = {'application/vnd.jupyter.widget-view+json': dict(model_id='1')}
    html = page(tmp_path, v4.new_markdown_cell('# The <em>run</em>'),
                v4.new_code_cell('a', outputs=[bar, text]), v4.new_code_cell('b', outputs=[error]),
                shown(view | {'image/png': 'AAEC', 'text/plain': 'widget'}),
                shown({'application/javascript': 'alert(1)'}))
    assert '100%|##| 9/9' in html and ' 50%' not in html
    assert 'a &lt; b' in html and 'InputError' in html and '\x1b' not in html
    assert 'base64,AAEC' in html and 'alert(1)' not in html and '<title>The' in html

def test_local_images_travel_inside(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'\x89PNG')
    assert 'src="data:image/png;base64,iVBORw=="' in page(tmp_path, v4.new_markdown_cell('![a](a.png)'))

FORMULAS = r'''Rate $R < \log K$.

$$\frac{1}{n}$$

\begin{aligned} a &= b \\ c &= d \end{aligned}'''


def test_formulas(tmp_path):
    html = page(tmp_path, v4.new_markdown_cell(FORMULAS))
    try: import latex2mathml  # noqa: F401
    except ImportError: assert html.count('<code>') == 3 and 'R &lt; \\log K' in html
    else: assert html.count('<math') == 3 and '<mfrac>' in html and '<mtable' in html and '&amp;=' not in html
    assert '<code>\\unknown{' in report._formula('\\unknown{') or '<math' in report._formula('\\unknown{')

def test_same_notebook_same_page(tmp_path, bundle):
    cells = [v4.new_markdown_cell('# a', id='m'), shown(*bundle)]
    assert page(tmp_path, *cells) == page(tmp_path, *cells)

def test_where_it_goes_and_what_it_refuses(tmp_path):
    nbformat.write(v4.new_notebook(), tmp_path / 'run.ipynb')
    assert report.html_copy(str(tmp_path / 'run.ipynb')) == tmp_path / 'run.html'
    assert report.html_copy(tmp_path / 'run.ipynb', tmp_path / 'deep' / 'x.html').is_file()
    with pytest.raises(InputError, match='no notebook'): report.html_copy(tmp_path / 'absent.ipynb')
    (tmp_path / 'bad.ipynb').write_text('{')
    with pytest.raises(InputError, match='not a notebook'): report.html_copy(tmp_path / 'bad.ipynb')
    assert not (tmp_path / 'bad.html').exists() and not list(tmp_path.glob('.*.tmp'))

def test_no_button_sends_a_picture_away():
    "Whatever the figure asks for: of two entries with the same name the later one counts."
    assert 'Plotly.newPlot(div, figure.data, figure.layout, config)' in report._DRAW
    options, = re.findall(r'const config = \{(.*?)\};', report._DRAW, re.S)
    assert "displayModeBar: 'hover'" in options
    assert options.index('...figure.config') < options.index('showSendToCloud: false')
