"Names of files, classes, clusters and data sets: shown in one line, harmless in a spreadsheet, kept in an export."
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nmc_workbench.core.errors import InputError, TrainingError, escaped
from nmc_workbench.core.files import csv_cell, csv_value, read_csv, read_json, write_csv, write_json
from nmc_workbench.data import as_images, load
from nmc_workbench.data.images import Images, decode
from nmc_workbench.evaluation.retrain import read_labels, write_labels
from nmc_workbench.explore.curation import Curation
from nmc_workbench.explore.curation_script import safe_name

CONTROLS = ['a\nb', 'a\r\nb', 'a\x1b[2Jb', 'a\tb', 'a\x00b', 'a\x7fb', 'a\x9bb', 'a\u2028b', 'a\u202eb', 'a\u200bb',
            'a\ud800b']
FORMULAS = ['=1+1', '+1', '-1', '@SUM(A1)', '\t=1', '\r=1', '=cmd|" /C calc"!A0', "'=1", "''=1", "'a", '"=1', ' =1',
            '-', '=', '\n=1', "it's", 'a=b']
FIRST = tuple('=+-@\t\r')


def is_shown_safely(text):
    "Whether a text is one line without commands to a terminal or turned directions."
    return not any(c in text for c in '\n\r\t\x00\x1b\x7f\x9b\u2028\u202e\u200b\ud800')


# --------------------------------------------------------------------------- shown in one line

@pytest.mark.parametrize('name', CONTROLS)
@pytest.mark.parametrize('error', [InputError, TrainingError])
def test_every_error_is_one_line(error, name):
    text = str(error(f'cannot read {name}; take it away'))
    assert is_shown_safely(text) and 'a\\' in text
    assert str(pickle.loads(pickle.dumps(error(name)))) == str(error(name)) == escaped(name)


@pytest.mark.parametrize('name', ['Grüße', '猫 dog', "it's (1) [2] {3} & <b>", 'a\\nb', 'می‌خواهم', '👩‍🔬', 'a\u00a0b'])
def test_letters_of_every_script_stay(name): assert escaped(name) == name


def pictures(root, names):
    for i, name in enumerate(names):
        root.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 100 + i, np.uint8)).save(root / name)
    return root


FILES = [n for n in CONTROLS if n not in ('a\x00b', 'a\ud800b')]


@pytest.mark.parametrize('name', FILES)
def test_names_of_files_in_errors_and_sentences(name, tmp_path, capsys):
    root = pictures(tmp_path / name, ['1.png', '2.png'])
    (root / f'{name}.png').write_bytes(b'\x89PNG')
    (root / f'x.{name}').write_text('')
    for make in (lambda: load('folder', root=root), lambda: decode(root / f'{name}.png'),
                 lambda: load(name), lambda: load('npz', root=root), lambda: read_json(root / f'{name}.png')):
        with pytest.raises(InputError) as e: make()
        assert is_shown_safely(str(e.value))
    assert is_shown_safely(capsys.readouterr().err.replace('\n', '', 1))


@pytest.mark.parametrize('name', FILES)
def test_names_in_summaries_menus_and_tables(name, tmp_path):
    from nmc_workbench.evaluation.agreement import Comparison
    from nmc_workbench.plotting.figure import mpl_text, plotly_text
    from nmc_workbench.reports.summary import summary
    from nmc_workbench.runs.finished import FinishedRun
    from nmc_workbench.runs.index import list_runs, run_choices, scores_table
    ids, pixels = [f'{name}{i}' for i in range(4)], torch.zeros(4, 1, 4, 4, dtype=torch.uint8)
    images = Images(pixels, [0, 1, 0, 1], [name, 'b'], ids, name, 'all')
    assert is_shown_safely(repr(images))
    for f in (escaped, mpl_text, plotly_text): assert is_shown_safely(f(name))
    folder = tmp_path / 'runs' / name
    write_json(folder / 'config.json', dict(method=name, dataset=name, seed=0))
    write_json(folder / 'results.json', dict(acc=.5, nmi=.5, ari=.5, seconds=1.))
    for array, values in (('predictions', [0, 1, 0, 1]), ('embeddings', np.eye(4)), ('ids', images.ids)):
        np.save(folder / f'{array}.npy', np.array(values))
    run = FinishedRun.open(folder)
    run = replace(run, images=images, class_labels=np.array([0, 1, 0, 1]), class_names=[])
    assert is_shown_safely(run.title) and is_shown_safely(repr(run)) and is_shown_safely(run.method)
    assert is_shown_safely(run_choices(tmp_path / 'runs')[0][0])
    rows = list_runs(tmp_path / 'runs') + scores_table(tmp_path / 'runs')
    assert all(is_shown_safely(str(v)) for row in rows for k, v in row.items() if k != 'folder')
    assert all(map(is_shown_safely, summary(folder).split('\n')))
    assert is_shown_safely(repr(Comparison([run, run])))


# --------------------------------------------------------------------------- spreadsheets

@pytest.mark.parametrize('text', FORMULAS + CONTROLS + ['', 'cat', 'a,b', 'a"b', '猫'])
def test_a_cell_is_harmless_and_comes_back(text):
    cell = csv_cell(text)
    assert not cell.startswith(FIRST) and csv_value(cell) == text
    if not text.lstrip("'").startswith(FIRST + ('\n',)): assert cell == text


@pytest.mark.parametrize('number', [-1, 0, -.5, 1e-9, np.int64(-3), np.float32(-2)])
def test_numbers_stay_numbers(number): assert csv_cell(number) is number


def test_a_table_comes_back_whole(tmp_path):
    rng, letters = np.random.default_rng(0), list("=+-@\t\r\n'\",; aé猫\\") + ['\udcff']
    texts = [''.join(rng.choice(letters, rng.integers(1, 6))) for _ in range(2000)] + FORMULAS
    write_csv(tmp_path / 'a.csv', [['name', 'n'], *zip(texts, range(len(texts)))])
    assert [row[0] for row in read_csv(tmp_path / 'a.csv')[1:]] == texts
    import csv
    with open(tmp_path / 'a.csv', newline='', encoding='utf-8') as f:
        assert not [row for row in csv.reader(f) if row[0].startswith(FIRST)]


def test_labels_csv_is_harmless_and_comes_back(tmp_path):
    n = len(FORMULAS)
    ids = np.array([f'{f} {i}' for i, f in enumerate(FORMULAS)])
    curation = Curation(ids, np.r_[np.arange(n - 1), -1], np.eye(n, 2))
    for k, name in enumerate(FORMULAS[:-1]): curation.rename(k, name)
    curation.export_labels(tmp_path / 'labels.csv', ids)
    head, *rows = read_csv(tmp_path / 'labels.csv')
    table = dict(zip(head, zip(*rows)))
    assert table['id'] == tuple(ids) and table['cluster'] == tuple(map(str, curation.labels))
    assert table['name'] == tuple(curation.names.get(k, 'noise') for k in curation.labels.tolist())
    import csv
    with open(tmp_path / 'labels.csv', newline='', encoding='utf-8') as f:
        assert not [c for row in csv.DictReader(f) for k, c in row.items() if k != 'cluster' and c.startswith(FIRST)]


def test_labels_for_training_are_harmless_and_come_back(tmp_path):
    ids = [f'{f} {i}' for i, f in enumerate(FORMULAS)]
    write_labels(tmp_path / 'a.csv', ids, np.arange(len(ids)))
    assert read_labels(tmp_path / 'a.csv', ids).tolist() == [list(range(len(ids)))]
    import csv
    with open(tmp_path / 'a.csv', newline='') as f: assert not [r for r in csv.reader(f) if r[0].startswith(FIRST)]
    (tmp_path / 'old.csv').write_text("id,head0\n=1,3\n'=2,4\n")      # as it was written without a guard
    assert read_labels(tmp_path / 'old.csv', ['=1', "'=2"]).tolist() == [[3, 4]]


@pytest.mark.parametrize('text', ['id,name\n"a', b'\xff\xfe', 'a\x00b\n'])
def test_a_table_that_is_damaged(text, tmp_path):
    path = tmp_path / 'a.csv'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    try: read_csv(path)
    except InputError as e: assert 'damaged' in str(e)


# --------------------------------------------------------------------------- names in exports

KEPT = ["it's", 'cats & dogs (large)', 'the "end"', '[a] {b}', 'a  b', 'a.b', '猫', '100 %', 'a;b,c', '#1', '~x', ' a']
NOT_ON_WINDOWS = ['a<b>', 'a|b', 'a:b', 'why?', 'a*b', 'a\\b']
CHANGED = {'a/b': 'a_b', '../../up': '__.._up', 'a\0b': 'a_b', 'a\nb': 'a_b', 'a\x1bb': 'a_b', 'end.': 'end_',
           'end...': 'end_', 'end. ': 'end_', 'end ': 'end', 'CON': '_CON', 'nul.txt': '_nul.txt', 'lpt1': '_lpt1',
           '.hidden': '_hidden', '..': '__', '': '_', ' ': '_'}


@pytest.mark.parametrize('name', KEPT + (NOT_ON_WINDOWS if os.name != 'nt' else []))
def test_a_name_that_the_file_system_takes_is_kept(name, tmp_path):
    assert safe_name(name) == name
    (tmp_path / name).touch()
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize('name', CHANGED)
def test_a_name_that_it_does_not_take_is_changed(name, tmp_path):
    changed = safe_name(name)
    if name not in ('..', '../../up'): assert changed == CHANGED[name]
    assert changed not in ('', '.', '..') and '/' not in changed and changed[-1] not in ' .' and changed[0] != '.'
    (tmp_path / changed).touch()
    assert [p.name for p in tmp_path.iterdir()] == [changed]


@pytest.mark.parametrize('longest', [10, 60, 120])
def test_a_long_name_is_cut_and_stays_valid(longest):
    for text in ('x' * 500, '猫' * 300, 'a.' * 300, 'a ' * 300, '😀' * 90):
        name = safe_name(text, longest)
        assert len(name.encode()) <= longest + 1 and name[-1] not in ' .'


def curated(root, names, labels):
    images = load('folder', root=pictures(root, names))
    return Curation(images.ids, np.array(labels), np.eye(len(names), 2)), images


def files_of(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())


@pytest.mark.parametrize('link', [False, True])
def test_folders_and_files_keep_their_names(link, tmp_path):
    names = ["it's (1) [a].JPG", 'b "c" & d.png', '=1.png', 'é 猫.png']
    curation, images = curated(tmp_path / 'in', names, [0, 0, 1, -1])
    curation.rename(0, 'the "best" (of all)')
    curation.export_folders(tmp_path / 'out', images, link)
    assert files_of(tmp_path / 'out') == sorted([f'00 the "best" (of all)/{n}' for n in names if n in images.ids[
        curation.labels == 0]] + [f'01 cluster 1/{n}' for n in images.ids[curation.labels == 1]]
        + [f'noise/{n}' for n in images.ids[curation.labels < 0]])


def test_clashes_are_numbered(tmp_path):
    for place in ('a/b', 'a_b', 'A'): pictures(tmp_path / 'in' / place, ['1.png'])
    pictures(tmp_path / 'in' / 'a', ['B_1.png'])
    images = load('folder', root=tmp_path / 'in')
    curation = Curation(images.ids, np.zeros(len(images), int), np.eye(len(images), 2))
    curation.export_folders(tmp_path / 'out', images)
    found = files_of(tmp_path / 'out')
    assert len(found) == len(images) == len({f.casefold() for f in found}) and '00 cluster 0/a_b_1.png' in [
        f.lower() for f in found]


def test_clusters_of_one_name_have_folders_of_their_own(tmp_path):
    curation, images = curated(tmp_path / 'in', [f'{i}.png' for i in range(4)], [0, 1, 2, 3])
    for k in range(3): curation.rename(k, 'same/' if k else 'same_')
    curation.export_folders(tmp_path / 'out', images)
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['00 same_', '01 same_', '02 same_', '03 cluster 3']


def test_arrays_are_exported_under_their_ids(tmp_path):
    images = as_images(np.zeros((3, 8, 8), np.uint8))
    Curation(images.ids, [0, 0, -1], np.eye(3, 2)).export_folders(tmp_path / 'out', images)
    assert files_of(tmp_path / 'out') == ['00 cluster 0/all_0.png', '00 cluster 0/all_1.png', 'noise/all_2.png']


@pytest.mark.parametrize('root', ['absolute', 'relative', '~'])
def test_the_paths_of_a_table_lead_to_the_files(root, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / 'in', ['1.png', '2.png'])
    images = load('folder', root=dict(absolute=tmp_path / 'in', relative='in', **{'~': '~/in'})[root])
    curation = Curation(images.ids, [0, 1], np.eye(2))
    curation.export_labels('deep/labels.csv', images.paths)
    monkeypatch.chdir('/')
    head, *rows = read_csv(tmp_path / 'deep/labels.csv')
    for row in rows:
        path = Path(row[head.index('path')])
        assert path.is_absolute() and path.is_file()
    assert [row[head.index('name')] for row in rows] == ['cluster 0', 'cluster 1']
