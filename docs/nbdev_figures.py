"""plotly's figures in pages.

The one copy of plotly.js beside the pages draws them when they come into sight; without scripts their PNG is shown."""
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
        kept = {k: figure.get(k, {}) for k in ('data', 'layout', 'config')}
        # without a `<`, no text in the figure can end the script element it stands in
        text = json.dumps(kept, separators=(',', ':')).replace('<', '\\u003c')
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
        image = [] if still is None else [still.children[0].deepcopy()]
        place += [nodes.raw('', before, format='html'), *image, nodes.raw('', after, format='html')]


def is_figure(node):
    "Whether raw HTML is the place of a figure."
    return 'figure-to-draw' in node.rawsource or 'figure-to-draw' in node.astext()


def scripts(app, pagename, template, context, doctree):
    "Sphinx's event: a page is written; those with figures load plotly."
    if doctree is None or not any(map(is_figure, doctree.findall(nodes.raw))): return
    app.add_js_file('plotly.min.js', loading_method='defer')
    app.add_js_file('figures.js', loading_method='defer')


def setup(app):
    known = render.load_mime_renders()      # a list that is made once; an entry point would have to be installed
    if PlotlyOutput not in known: known.append(PlotlyOutput)
    app.add_post_transform(Figures)
    app.connect('html-page-context', scripts)
    return dict(version='1', parallel_read_safe=True, parallel_write_safe=True)
