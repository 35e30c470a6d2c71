"plotly's figures in pages: drawn by the one copy of plotly.js beside them, when they come into sight; the PNG where no script runs."
import json

from docutils import nodes
from myst_nb.core import render
from sphinx.transforms.post_transforms import SphinxPostTransform

MIME = 'application/vnd.plotly.v1+json'


class PlotlyOutput:
    "myst-nb's hook for kinds of output: keeps the figure until the page is made."
    mime_priority_overrides = [('html', MIME, 1)]

    @staticmethod
    def handle_mime(renderer, data, inline):
        if inline or data.mime_type != MIME: return None
        figure = data.content if isinstance(data.content, dict) else json.loads(data.content)
        height = int(figure.get('layout', {}).get('height') or 450)
        # no text in the figure can end the script element it stands in
        text = json.dumps({k: figure.get(k, {}) for k in ('data', 'layout', 'config')}, separators=(',', ':')).replace('<', '\\u003c')
        return [nodes.raw('', text, format='html', plotly=height)]


class Figures(SphinxPostTransform):
    "A figure with its PNG behind it."
    default_priority = 3        # before myst-nb chooses among the kinds of an output
    formats = ('html',)

    def run(self, **kwargs):
        for bundle in self.document.findall(nodes.container):
            if bundle.get('nb_element') != 'mime_bundle': continue
            kinds = {c['mime_type']: c for c in bundle.children}
            if MIME in kinds: self.put(kinds[MIME], kinds.get('image/png'))

    def put(self, place, still):
        figure = place.children[0]
        before = f'<div class="figure-to-draw" style="height:{figure["plotly"]}px"><noscript>'
        after = f'</noscript></div><script type="application/json">{figure.astext()}</script>'
        place.children = []
        place += [nodes.raw('', before, format='html'), *([] if still is None else [still.children[0].deepcopy()]), nodes.raw('', after, format='html')]


def scripts(app, pagename, template, context, doctree):
    "Sphinx's event: a page is written; those with figures load plotly."
    if doctree is None or not any('figure-to-draw' in n.rawsource or 'figure-to-draw' in n.astext() for n in doctree.findall(nodes.raw)): return
    app.add_js_file('plotly.min.js', loading_method='defer')
    app.add_js_file('figures.js', loading_method='defer')


def setup(app):
    known = render.load_mime_renders()          # a list that is made once; as an entry point this would have to be installed
    if PlotlyOutput not in known: known.append(PlotlyOutput)
    app.add_post_transform(Figures)
    app.connect('html-page-context', scripts)
    return dict(version='1', parallel_read_safe=True, parallel_write_safe=True)
