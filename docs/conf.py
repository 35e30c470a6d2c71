"""The site: `make docs` builds it from the notebooks of nbs/ and the pages of docs/.

A page's address is its path in the repository."""
import importlib.util
import os
import shutil
import sys
from configparser import ConfigParser
from pathlib import Path

import plotly

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT), str(ROOT / 'tools')]
os.environ['IN_TEST'] = '1'                     # notebooks take their small path where they have one

settings = ConfigParser(delimiters=['='])
settings.read(ROOT / 'settings.ini', encoding='utf-8')
settings = settings['DEFAULT']
project, author, release, copyright = (settings[k] for k in ('title', 'author', 'version', 'copyright'))

extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.viewcode', 'sphinx.ext.mathjax', 'sphinx_copybutton',
              'sphinx_design', 'nbdev_myst', 'nbdev_reference', 'nbdev_figures']
root_doc = 'docs/index'
source_suffix = {'.md': 'myst-nb', '.ipynb': 'myst-nb'}
_sources = ('docs', 'nbs', 'CHANGELOG.md', 'CONTRIBUTING.md')
exclude_patterns = [p.name for p in ROOT.iterdir() if p.name not in _sources]
exclude_patterns += ['docs/_*', 'docs/records', 'nbs/index.ipynb', '**/.*', '**/_*']
highlight_language = 'text'                     # indented text is a command line; notebook cells name Python
nitpicky = True                                 # a reference to a missing name of ours is a warning, and so an error
nitpick_ignore_regex = [(r'py:.*', rf'(?!{settings["lib_name"]}\.).*')]

# Notebooks that are shown without being run. Every other one is run, as nbdev's test runs it.
nbdev_not_run = ['nbs/explore_run']             # it shows only widgets: docs/images/NAME*.png stand in
nbdev_parameters = {}                           # notebook -> parameters to set in it, as papermill does

nbdev_execute = os.environ.get('DOCS_EXECUTE', 'on') != 'off'       # off: pages without outputs, in two minutes
nb_execution_mode = 'off'                       # nbdev_execute.py runs them
nb_merge_streams = True
nb_output_stderr = 'remove'                     # progress bars
nb_ipywidgets_js = {}
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence', 'deflist', 'attrs_inline']
myst_heading_anchors = 3

viewcode_follow_imported_members = False        # else pages link to a name in the module that was read first
autodoc_typehints = 'none'                      # types stand in the table of parameters
autodoc_member_order = 'bysource'
autodoc_inherit_docstrings = False
add_module_names = False
toc_object_entries_show_parents = 'hide'
python_use_unqualified_type_names = True

# Every script comes from this machine, none from another host.
static = ROOT / '_docs/static'
static.mkdir(parents=True, exist_ok=True)
shutil.copy(Path(plotly.__file__).parent / 'package_data/plotly.min.js', static)
_mathjax = Path(importlib.util.find_spec('sphinx-mathjax-offline').origin).parent
shutil.copy(_mathjax / 'static/mathjax/tex-svg.js', static)
html_static_path = ['../_docs/static', '_static']
html_extra_path = ['_extra']
mathjax_path = 'tex-svg.js'

html_theme = 'pydata_sphinx_theme'
html_title = project
html_favicon = '_static/mark.svg'
html_logo = '_static/mark.svg'
html_css_files = ['site.css']
html_sidebars = {f'docs/{page}': [] for page in ('pages/home', 'pages/quickstart', 'pages/benchmark', 'index')}
html_context = dict(default_mode='auto')
html_sourcelink_suffix = ''                     # a notebook's source is the notebook
html_theme_options = dict(
    logo=dict(text=project, link='docs/pages/home'),
    navigation_with_keys=False, navbar_align='left', header_links_before_dropdown=7,
    show_toc_level=2, navigation_depth=2, secondary_sidebar_items=['page-toc', 'sourcelink'],
    footer_start=['copyright'], footer_center=[], footer_end=[],
    pygments_light_style='tango', pygments_dark_style='github-dark')
