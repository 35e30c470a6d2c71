"Similar images, search, marks, duplicates and the table of clusters: in Python, on the explorer, and in a browser."
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from nmc_workbench.core.errors import InputError
from nmc_workbench.core.files import write_csv
from nmc_workbench.data import load
from nmc_workbench.explore.explorer import Explorer
from nmc_workbench.explore.marks import Marks, read_marks
from nmc_workbench.explore.search import join_columns, search
from nmc_workbench.explore.similar import Similar, duplicates, near_pairs, same_pixels, thumbnails, unit_rows
from nmc_workbench.widgets.table import Table, table_columns
from tests.browsing import drawn, notebook, point, run_all, seconds_until
from tests.test_explorer import HOSTILE, made


@pytest.fixture
def explorer(tmp_path):
    e = Explorer(made(tmp_path / 'run'), map_method='pca')
    assert e.ui is not None
    return e


# --------------------------------------------------------------------------- similar

@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('chunk', [7, 10 ** 6])
def test_similar_is_what_a_search_in_double_precision_finds(seed, chunk):
    x = np.random.default_rng(seed).normal(size=(500, 16)) * np.random.default_rng(9).uniform(.01, 100, (500, 1))
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    s = Similar(x)
    s.chunk = chunk
    for i in (0, 250, 499):
        found, cosines = s.of(i, 20)
        wanted = u @ u[i]
        wanted[i] = -2
        assert found.tolist() == np.argsort(-wanted, kind='stable')[:20].tolist()
        assert np.allclose(cosines, wanted[found], atol=1e-6)


def test_similar_at_the_edges():
    s = Similar(np.array([[1., 0], [2, 0], [0, 0], [-1, 0], [3, 0]]))
    assert s.of(0, 9)[0].tolist() == [1, 4, 2, 3]           # equal ones in the order of the set, itself never
    assert s.of(0, 1)[0].tolist() == [1] and Similar(np.ones((1, 2))).of(0)[0].tolist() == []
    for wrong in (lambda: s.of(5), lambda: s.of(0, 0), lambda: s.cosines(np.ones(3)), lambda: Similar([[np.nan, 1.]])):
        with pytest.raises(InputError): wrong()


@pytest.mark.parametrize('block', [3, 50, 1000])
def test_every_near_pair_is_found_once(block):
    u = unit_rows(np.random.default_rng(0).normal(size=(120, 3)))
    pairs, cosines = near_pairs(u, .97, block)
    c = (u @ u.T).numpy()
    wanted = {(i, j) for i in range(120) for j in range(i + 1, 120) if c[i, j] >= .97}
    assert len(pairs) == len(wanted) > 20 and set(map(tuple, pairs.tolist())) == wanted
    assert np.allclose(cosines, c[pairs[:, 0], pairs[:, 1]], atol=1e-6)


def test_too_many_pairs_are_refused(monkeypatch):
    from nmc_workbench.explore import similar
    monkeypatch.setattr(similar, 'MOST_PAIRS', 100)
    with pytest.raises(InputError, match='more than 100 pairs have a cosine of 0.9 or more; raise the threshold'):
        near_pairs(np.ones((50, 2)) / 2 ** .5, .9)


def doubled():
    "Digits with a copy of three, one of them twice, and a brighter version of another; a blank image twice."
    digits = load('digits', limit=150).pixels
    brighter = (digits[9:10].float() * .9 + 10).byte()
    blank = torch.full((2, 1, 8, 8), 7, dtype=torch.uint8)
    return torch.cat([digits, digits[[3, 4, 4]], brighter, blank])


@pytest.mark.parametrize('kind', ['tensor', 'array', 'images', 'files'])
def test_duplicates_of_every_kind_of_set(kind, tmp_path):
    pixels = doubled()
    if kind == 'array': some = pixels.numpy()
    elif kind == 'tensor': some = pixels
    elif kind == 'images':
        from nmc_workbench.data import as_images
        some = as_images(pixels)
    else:
        for i, x in enumerate(pixels): Image.fromarray(x[0].numpy()).save(tmp_path / f'{i:03}.png')
        some = load('folder', 'train', str(tmp_path))
    groups = duplicates(some, threshold=.995)
    same = [g.index.tolist() for g in groups if g.kind == 'same']
    assert sorted(same) == [[3, 150], [4, 151, 152], [154, 155]]
    assert [len(g.index) for g in groups] == sorted((len(g.index) for g in groups), reverse=True)
    assert any(g.kind == 'near' and {9, 153} <= set(g.index.tolist()) and g.cosine >= .995 for g in groups)
    assert [g.index.tolist() for g in duplicates(some, threshold=1)] == [[4, 151, 152], [3, 150], [154, 155]]


def test_duplicates_by_the_embedding():
    x = np.random.default_rng(0).normal(size=(40, 8))
    x[7] = 3 * x[2]
    assert [g.index.tolist() for g in duplicates(embedding=x, by='embedding', threshold=.999)] == [[2, 7]]
    assert duplicates(embedding=x[:5], by='embedding', threshold=.999) == []
    with pytest.raises(InputError, match='needs images'): duplicates(embedding=x)
    with pytest.raises(InputError, match='unknown by'): duplicates(x, by='sound')


def test_thumbnails_of_one_colour_are_near_nothing():
    blank = torch.stack([torch.full((3, 20, 30), v, dtype=torch.uint8) for v in (0, 100)])
    assert not thumbnails(blank).any() and same_pixels(blank).tolist() == [0, 1] and duplicates(blank) == []


# --------------------------------------------------------------------------- search

@pytest.mark.parametrize('query, n', [('class:3', None), ('cluster:noise', 5), ('confidence<0', 0), ('all/7', None),
                                      ('cluster:0 -class:3', None), ('name:"cluster 0"', None), ('', 0)])
def test_search_in_the_explorer(explorer, query, n):
    e = explorer
    ids = e.search(query)
    assert ids.tolist() == e.selection.tolist() and (n is None or len(ids) == n)
    y, names = e.run.class_labels, e.run.class_names
    wanted = {'class:3': [names[c] == '3' for c in y], 'all/7': ['all/7' in i for i in e.run.ids],
              'cluster:0 -class:3': (e.labels == 0) & (y != 3), 'name:"cluster 0"': e.labels == 0}.get(query)
    if wanted is not None: assert e.selected.tolist() == np.flatnonzero(wanted).tolist() and len(ids)


def test_search_by_name_path_and_what_was_edited(explorer, tmp_path):
    e = explorer
    e.edit('rename', 0, 'Polar Bears')
    assert len(e.search('name:bear')) == len(e.search('"polar bears"')) == (e.labels == 0).sum()
    for i in range(len(e.run)):
        path = tmp_path / f'files/{i % 2}/{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (30, 20)).save(path)
    e.run.images = load('folder', 'train', str(tmp_path / 'files'), size=8)
    assert len(e.search('path:files/1/')) == 60
    assert '30 × 20 pixels (the run has seen 8 × 8 pixels)' in e.facts_of(4)
    e.look(4)
    from io import BytesIO
    assert Image.open(BytesIO(e.tiles._told['picture'])).size == (30, 20)       # the file itself


@pytest.mark.parametrize('query, said', [
    ('clas:3', "unknown field 'clas'; did you mean 'class'?"), ('confidence<low', 'holds numbers'),
    ('class<3', 'holds texts'), ('class:', 'cannot read'), ('"open', 'cannot read'), ('a:b:c', 'unknown field')])
def test_what_cannot_be_searched_is_said(explorer, query, said):
    with pytest.raises(InputError, match=said.replace('?', r'\?')) as e: explorer.search(query)
    assert '\n' not in str(e.value)
    explorer.search_box.value = query
    assert 'color:#b00020' in explorer.message.value


@pytest.mark.parametrize('text', [HOSTILE, 'a' * 5000, '((', '\\', '*' * 40, '日本 猫', '\x00', '[a-z]+', '-', '--x'])
def test_any_text_is_a_query_or_one_clear_error(text):
    try: found = search(text, dict(id=['a', text], cluster=np.array([0, 1])))
    except InputError as e: assert '\n' not in str(e) and len(str(e)) < 400
    else: assert found.dtype == np.int64


def test_own_columns_join_by_id(explorer, tmp_path):
    e, ids = explorer, explorer.run.ids
    rows = [['ID', 'age', 'who', 'class'], *[[ids[i], i, f'w{i % 3}', 'x'] for i in range(100)][::-1],
            ['gone/1', 5, 'z', 'y'], ['gone/2', 6, 'z', 'y']]
    write_csv(tmp_path / 'mine.csv', rows)
    e.csv_box.value = str(tmp_path / 'mine.csv')
    e.closer_buttons['Join'].click()
    assert 'gone/1' in e.message.value and '2 rows of no sample' in e.message.value
    assert '20 samples without a row' in e.message.value
    assert e.unjoined == [dict(id='gone/1', age='5', who='z', **{'class': 'y'}),
                          dict(id='gone/2', age='6', who='z', **{'class': 'y'})]
    assert e.search('age>=97').tolist() == ids[97:100].tolist() and len(e.search('who:w1')) == 33
    assert len(e.search('own_class:x')) == 100 and len(e.search('class:x')) == 0        # the run's own class stays
    assert 'age: 5.0' in e.facts_of(5)


@pytest.mark.parametrize('text, said', [
    ('a,b\n1,2\n', 'expected one named id'), ('id,a\n', 'has no rows'), ('id,a\nx,1\nx,2\n', 'twice'), ('', 'named id'),
    ('id,a\nx\n', 'row 2 has 1 cells; expected 2'), ('id,a\nx,1\n', 'no row of a sample here'),
    ('id,a,A\nx,1,2\n', 'each name once'), ('id;a\nx;1\n', 'expected one named id')])
def test_a_table_that_does_not_join_is_refused(explorer, tmp_path, text, said):
    explorer.columns = dict(kept=['v'] * len(explorer.run))
    (tmp_path / 'mine.csv').write_text(text)
    with pytest.raises(InputError, match=said): explorer.join(tmp_path / 'mine.csv')
    assert list(explorer.columns) == ['kept']


def test_a_column_of_numbers_and_texts_is_text(tmp_path):
    write_csv(tmp_path / 'a.csv', [['id', 'n', 't'], ['x', 1, 'a'], ['y', '', '2']])
    joined = join_columns(tmp_path / 'a.csv', ['y', 'x'])
    assert np.isnan(joined.columns['n'][0]) and joined.columns['n'][1] == 1 and joined.columns['t'] == ['2', 'a']


# --------------------------------------------------------------------------- marks

def test_marks_come_back(explorer, tmp_path):
    e = explorer
    e.select([3, 5, 8])
    e.mark_box.value = 'odd'
    e.closer_buttons['Tag'].click()
    e.closer_buttons['Keep'].click()
    e.look(9)
    e.closer_buttons['Tag'].click()                             # what is large
    assert 'tags: odd' in e.tiles._told['large']['lines'] and e.tiles.enlarged == 9
    again = Explorer(tmp_path / 'run', map_method='pca')
    ids = e.run.ids
    assert again.tags == {'odd': ids[[3, 5, 8, 9]].tolist()} and again.selections == {'odd': ids[[3, 5, 8]].tolist()}
    assert again.search('tag:odd').tolist() == ids[[3, 5, 8, 9]].tolist()
    again.recall('odd')
    assert again.selected.tolist() == [3, 5, 8]
    again.mark_table.heard(dict(row=0))
    assert again.selected.tolist() == [3, 5, 8] and again.mark_box.value == 'odd'
    again.closer_buttons['Delete'].click()
    again.untag('odd', ids[[3, 5]])
    assert read_marks(tmp_path / 'run').tags == {'odd': ids[[8, 9]].tolist()} and e.selections == {}
    with pytest.raises(InputError, match='are not in this run|no sample'): e.tag('odd', ['nobody'])


def test_two_windows_lose_nothing(tmp_path):
    windows = [Marks(tmp_path) for _ in range(4)]
    def work(k):
        for j in range(15):
            windows[k].tag([f'{k}/{j}'], 'both')
            windows[k].keep(f'{k} {j}', [f'{k}/{j}'])
    with ThreadPoolExecutor(4) as pool: list(pool.map(work, range(4)))
    assert len(windows[0].tags['both']) == 60 and len(read_marks(tmp_path).selections) == 60
    assert sorted(p.name for p in tmp_path.iterdir()) == ['marks.json']


@pytest.mark.parametrize('text', ['', '{', '[]', 'null', '{"format": 1}', '{"format": 1, "tags": 3, "selections": {}}',
                                  '{"format": 1, "tags": {"a": [1]}, "selections": {}}', '\x00' * 9, '{"format": 0}',
                                  '{"format": 1, "tags": {"a": "b"}, "selections": {}}'])
def test_damaged_marks_are_set_aside(explorer, tmp_path, text):
    path = tmp_path / 'run/marks.json'
    path.write_text(text)
    with pytest.raises(InputError, match='damaged') as e: read_marks(tmp_path / 'run')
    assert '\n' not in str(e.value) and path.with_name('marks.json.damaged').read_text() == text
    path.write_text(text)
    again = Explorer(tmp_path / 'run', map_method='pca')
    assert 'color:#b00020' in again.message.value and again.tags == {}


def test_marks_of_a_later_version_stay(tmp_path):
    (tmp_path / 'marks.json').write_text('{"format": 2, "new": 1}')
    with pytest.raises(InputError, match='format 2'): Marks(tmp_path).tag(['a'], 'b')
    assert json.loads((tmp_path / 'marks.json').read_text()) == {'format': 2, 'new': 1}


def test_ids_that_are_no_utf8_keep_their_tags(tmp_path):
    Marks(tmp_path).tag(['a\udcff', '猫'], 'odd')
    assert Marks(tmp_path).tags == {'odd': ['a\udcff', '猫']}


def test_marks_of_samples_that_are_elsewhere_stay(explorer, tmp_path):
    Marks(tmp_path / 'run').tag(['elsewhere', str(explorer.run.ids[2])], 'odd')
    explorer.recall('odd')
    assert explorer.selected.tolist() == [2] and '1 of them' in explorer.message.value
    explorer.tag('odd', [explorer.run.ids[4]])
    assert 'elsewhere' in explorer.tags['odd'] and len(explorer.tags['odd']) == 3


# --------------------------------------------------------------------------- on the explorer

def test_a_click_shows_an_image_large_with_its_neighbours(explorer):
    e = explorer
    e.map.heard(dict(click=7))
    large = e.tiles._told['large']
    assert e.tiles.enlarged == 7 and not len(e.selected) and not large['picked']
    assert large['near']['index'] == Similar(e.run.embedding).of(7, 10)[0].tolist()
    j = large['near']['index'][2]
    e.tiles.heard(dict(near=j))
    assert e.tiles.enlarged == j
    e.tiles.heard(dict(near=-3))
    assert e.tiles.enlarged == j
    e.tiles.heard(dict(large='pick'))
    assert e.selected.tolist() == [j]
    e.map.heard(dict(click=7, held=True))
    assert sorted([7, j]) == e.selected.tolist()


def test_find_similar_shows_the_nearest_first(explorer):
    e = explorer
    e.look(7)
    e.tiles.heard(dict(large='find similar'))
    wanted = [7, *Similar(e.run.embedding).of(7, 48)[0]]
    assert e.tiles.shown.tolist() == wanted and e.order_menu.value == 'similar'
    assert e.find_similar(str(e.run.ids[7]), 3) == list(zip(e.run.ids[wanted[1:4]].tolist(),
                                                            Similar(e.run.embedding).of(7, 3)[1].tolist()))
    e.look(7)
    e.tiles.heard(dict(large='next'))
    assert e.tiles.enlarged == wanted[1]
    e.order_menu.value = 'prototypes'
    assert e.tiles.shown.tolist() != wanted[:4]
    e.select(None)
    assert 'similar' not in e.order_menu.options and e.order_menu.value == 'prototypes'
    with pytest.raises(InputError, match='there is no sample'): e.find_similar('nobody')


def test_the_table_of_clusters_follows_edits(explorer):
    e = explorer
    e._tabs.selected_index = e._tabs.titles.index('table')
    names, columns = e.cluster_table._told['names'], e.cluster_table._told['columns']
    assert columns[names.index('cluster')] == [-1, 0, 1, 2] and sum(columns[names.index('size')]) == len(e.run)
    e.cluster_table.heard(dict(row=2))
    assert e.chosen == [1] and e.cluster_table._told['marked'] == [2]
    e.cluster_table.heard(dict(row=3, held=True))
    assert e.chosen == [1, 2]
    e.buttons['Merge'].click()
    assert e.cluster_table._told['columns'][0] == [-1, 0, 1] and e.cluster_table._told['marked'] == [2]
    assert e.table()['size'].sum() == len(e.run)


def test_duplicates_are_listed_and_selected(explorer):
    e = explorer
    e.run.images.pixels[[11, 20]] = e.run.images.pixels[4].clone()
    e.closer_buttons['Find duplicates'].click()
    same = [g.index.tolist() for g in e.groups if g.kind == 'same']
    assert same == [[4, 11, 20]] and e.group_table._told['columns'][0].count('same') == 1
    e.group_table.heard(dict(row=[g.kind for g in e.groups].index('same')))
    assert e.selected.tolist() == [4, 11, 20]
    assert '2 equal to another' in e.groups_text.value


def test_a_run_without_images(tmp_path):
    e = Explorer(made(tmp_path / 'run', with_images=False), map_method='pca')
    assert e.ui is not None
    e.look(3)
    assert e.tiles.enlarged == 3 and len(e.tiles._told['large']['near']['index']) == 10
    e.duplicates(.9999)
    e.open(made(tmp_path / 'other', n=60))
    assert e.groups == [] and len(e.find_similar(3, 5)) == 5


# --------------------------------------------------------------------------- the table

def test_a_table_takes_frames_and_dicts():
    import pandas as pd
    frame = pd.DataFrame(dict(a=pd.array([1, None], 'Int64'), b=[np.nan, np.inf], c=[HOSTILE, [1, 2]], d=[True, None]))
    assert table_columns(frame) == (['a', 'b', 'c', 'd'], [[1, None], [None, 'inf'], [HOSTILE, '1, 2'], ['true', None]])
    for wrong in (3, 'x', None, [1]):
        with pytest.raises(InputError): table_columns(wrong)
    t = Table(frame)
    t.heard(dict(row=0)), t.heard(dict(row='x')), t.heard({})
    with pytest.raises(InputError, match='colours has 1'): t.show(frame, ['#000000'])


# --------------------------------------------------------------------------- in a browser

CELL = '''
from nmc_workbench.explore.explorer import Explorer
explorer = Explorer({folder!r}, map_method='pca')
explorer'''


def opened(page, lab, folder, name):
    notebook(lab.work / name, CELL.format(folder=str(folder)))
    run_all(page, lab(name))
    drawn(page, '.nmc-map'), drawn(page, '.nmc-tiles')
    page.locator('.nmc-run').evaluate('e => e.scrollIntoView()')
    page.wait_for_timeout(300)


def tab(page, title): page.locator('.lm-TabBar-tab:visible', has_text=title).click()


@pytest.mark.slow
def test_look_closer_in_a_browser(new_page, lab, tmp_path):
    "Click an image, see it large, find similar ones, search, tag, sort a table, reopen: the tags are there."
    folder, page = made(tmp_path / 'run'), new_page(1400, 1000)
    opened(page, lab, folder, 'closer.ipynb')
    page.mouse.click(*point(page, 7))
    large = page.locator('.nmc-large')
    large.get_by_text('8 × 8 pixels').wait_for()
    ids = np.load(folder / 'ids.npy')
    assert ids[7] in large.inner_text() and large.locator('.nmc-near').count() == 10
    second = large.locator('.nmc-near').nth(1)
    other = ids[int(second.get_attribute('data-i'))]
    second.click()
    large.get_by_text(other, exact=True).wait_for()
    seconds_until(page, large.get_by_text('find similar').click, '.nmc-tiles')
    page.locator('.nmc-about', has_text=f'most like {other}').wait_for()
    page.wait_for_function('document.querySelectorAll(".nmc-tile").length === 49')
    # a tag for the one that is large
    page.locator('.nmc-tile').first.click()
    large.get_by_text(other, exact=True).wait_for()
    tab(page, 'marks')
    page.locator('.nmc-mark-box input').fill('odd')
    page.locator('.nmc-mark-box input').press('Enter')
    page.locator('.nmc-tag').click()
    large.get_by_text('tags: odd').wait_for()
    # search, keep, and a wrong query
    box = page.locator('.nmc-search input')
    box.fill('cluster:1 confidence>=0.5')
    seconds_until(page, lambda: box.press('Enter'), '.nmc-tiles')
    page.locator('.nmc-about', has_text='found by').wait_for()
    page.locator('.nmc-mark-box input').fill('sure ones')
    page.locator('.nmc-mark-box input').press('Enter')
    page.locator('.nmc-keep').click()
    page.locator('.nmc-row', has_text='sure ones').wait_for()
    box.fill('clas:3')
    box.press('Enter')
    page.locator('.nmc-message', has_text='did you mean').wait_for()
    # the table of clusters sorts, filters and selects
    tab(page, 'table')
    table = page.locator('.nmc-table:visible')
    table.locator('th', has_text='size').click()
    table.locator('th', has_text='size').click()
    sizes = [int(r.locator('td').nth(3).inner_text()) for r in table.locator('.nmc-row').all()]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == 4
    table.locator('input').fill('noise')
    table.get_by_text('1 of 4 rows').wait_for()
    table.locator('.nmc-row').click()
    page.locator('.nmc-about', has_text='noise').wait_for()
    tab(page, 'duplicates')
    page.locator('.nmc-find-duplicates').click()
    page.get_by_text('equal to another').wait_for()
    assert page.errors == [] and page.outside == []
    # opened again, the run has its marks
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.locator('.nmc-about', has_text='nothing is selected').wait_for()
    tab(page, 'marks')
    page.locator('.nmc-row', has_text='sure ones').wait_for()
    page.locator('.nmc-row', has_text='odd').click()
    page.locator('.nmc-about', has_text='odd').wait_for()
    assert read_marks(folder).tags == {'odd': [other]} and page.errors == []
