"Edits of clusters: against a slow reference, saved and replayed, damaged, exported."
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from nmc_workbench.core.errors import InputError
from nmc_workbench.core.files import read_csv
from nmc_workbench.core.labels import cluster_name
from nmc_workbench.explore.curation import Curation
from nmc_workbench.explore.curation_script import read_script, safe_name

HOSTILE = ['<script>alert("x")</script>', 'a, "b"\r\nc', '=1+1', '😀' * 40, "it's", '../../up', 'x' * 300]


def samples(n=200, k=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, k, n)
    x = (rng.normal(size=(n, 3)) + 5 * np.eye(k, 3)[labels]).astype('f4')
    return np.array([f'train/{i}.png' for i in range(n)]), labels, x


def at_random(c, rng, steps=40):
    "Make edits such as a person makes; return kind, labels and names after each."
    seen = []
    for _ in range(steps):
        real = [k for k in c.clusters if k >= 0]
        kind = rng.choice(['merge', 'split', 'move', 'new', 'noise', 'rename', 'undo', 'redo'])
        try:
            if kind == 'merge': c.merge(rng.choice(real, 2, replace=False))
            elif kind == 'split': c.split(int(rng.choice(real)), int(rng.integers(2, 4)))
            elif kind == 'move': c.move(rng.choice(c.ids, 9), int(rng.choice(real)))
            elif kind == 'new': c.move(rng.choice(c.ids, 9), c.new_cluster())
            elif kind == 'noise': c.noise(rng.choice(c.ids, 3))
            elif kind == 'rename': c.rename(int(rng.choice(real)), str(rng.choice(HOSTILE)))
            elif kind == 'undo': c.undo()
            else: c.redo()
        except (InputError, ValueError): continue
        seen.append((kind, c.labels.copy(), dict(c.names)))
    return seen


@pytest.mark.parametrize('seed', range(6))
def test_undo_and_redo_against_whole_copies(seed):
    ids, labels, x = samples(seed=seed)
    c, rng = Curation(ids, labels, x), np.random.default_rng(seed)
    past, future = [(labels.copy(), {})], []
    for kind, after, names in at_random(c, rng, 60):
        if kind == 'undo': future.append(past.pop())
        elif kind == 'redo': past.append(future.pop())
        else:
            past.append((after, names))
            future.clear()
        assert (after == past[-1][0]).all() and names == past[-1][1]
    assert len(c.edits) == len(past) - 1 and c.can_redo == bool(future)
    while c.can_undo: c.undo()
    assert (c.labels == labels).all() and c.names == {}


@pytest.mark.parametrize('seed', range(6))
def test_saved_and_replayed(seed, tmp_path):
    ids, labels, x = samples(seed=seed)
    c = Curation(ids, labels, x)
    at_random(c, np.random.default_rng(seed))
    c.save(tmp_path / 'curation.json')
    again = Curation.load(tmp_path / 'curation.json', ids, labels, x)
    assert (again.labels == c.labels).all() and again.names == c.names
    assert again.edits == c.edits and not again.skipped


REPLAY = '''import numpy as np
from nmc_workbench.explore.curation import Curation
run = np.load("run.npz")
print(Curation.load("curation.json", run["ids"], run["labels"], run["x"]).labels.tolist())'''


def test_replayed_in_a_new_process(tmp_path):
    ids, labels, x = samples()
    c = Curation(ids, labels, x)
    c.split(0, 3)
    c.merge([1, 2])
    c.move(ids[:20], 3)
    c.noise(ids[30:33])
    c.split(1, 2, 'modes')
    c.rename(1, HOSTILE[0])
    c.save(tmp_path / 'curation.json')
    np.savez(tmp_path / 'run.npz', ids=ids, labels=labels, x=x)
    done = subprocess.run([sys.executable, '-c', REPLAY], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout) == c.labels.tolist()


def test_numbers_of_clusters_stay():
    ids, labels, x = samples()
    c = Curation(ids, labels, x)
    c.rename(3, 'three')
    c.merge([3, 1, 4])
    assert c.clusters == [0, 1, 2, -1] and c.names == {1: 'three'} and (c.labels[labels == 4] == 1).all()
    c.split(1, 3)
    sizes = c.sizes()
    assert c.clusters == [0, 1, 2, 5, 6, -1] and sizes[1] >= sizes[5] >= sizes[6] and c.names == {1: 'three'}
    c.undo()
    assert c.new_cluster() == 7                         # 5 and 6 are not used again


def test_on_a_newer_run(tmp_path):
    "It has other numbers of clusters, another order, and fewer and other samples."
    ids, labels, x = samples(300)
    c = Curation(ids, labels, x)
    c.rename(0, 'zero')
    c.merge([1, 2])
    c.noise(ids[[5, 6]])
    c.split(3, 2)
    c.rename(5, 'part')
    c.move(ids[10:14], c.new_cluster())
    c.save(tmp_path / 'c.json')
    other = np.array([3, 1, 0, 4, 2])
    mixed = np.random.default_rng(1).permutation(300)[:280]
    new_ids = np.concatenate([ids[mixed], ['train/new.png']])
    new_labels = np.concatenate([np.where(labels < 0, -1, other[labels])[mixed], [0]])
    n = Curation.load(tmp_path / 'c.json', new_ids, new_labels, np.concatenate([x[mixed], x[:1]]))
    want = c.labels[mixed]
    pairs = set(zip(want.tolist(), n.labels[:-1].tolist()))
    unsplit = {(a, b) for a, b in pairs if a not in (3, 5)}         # the split was made anew, on other samples
    assert len(unsplit) == len({a for a, _ in unsplit})
    assert n.names[other[0]] == 'zero' and 'part' in n.names.values() and (n.labels[:-1][want == -1] == -1).all()
    if not np.isin([5, 6, 10, 11, 12, 13], mixed).all(): assert any('not in this run' in s for s in n.skipped)
    few = Curation.load(tmp_path / 'c.json', ids, np.where(labels == 1, 0, labels), x)        # cluster 1 is gone
    assert any('of the script has no counterpart in this run' in s for s in few.skipped)


def test_another_embedding_under_the_same_labels_is_told(tmp_path):
    ids, labels, x = samples()
    c = Curation(ids, labels, x)
    c.split(0, 2)
    c.save(tmp_path / 'c.json')
    mixed = x[np.random.default_rng(0).permutation(200)]
    with pytest.raises(InputError, match='leads to other labels here'):
        Curation.load(tmp_path / 'c.json', ids, labels, mixed)
    assert (tmp_path / 'c.json').is_file()


def test_damaged_scripts_are_refused_and_kept(tmp_path):
    ids, labels, x = samples(40)
    c = Curation(ids, labels, x)
    c.merge([0, 1])
    c.rename(0, HOSTILE[0])
    c.noise(ids[:2])
    path = tmp_path / 'curation.json'
    c.save(path)
    whole = path.read_bytes()
    rng, refused = np.random.default_rng(0), 0
    changes = [whole[:i] for i in range(0, len(whole) - 3, max(1, len(whole) // 40))]
    for _ in range(60):
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        changes.append(bytes(flipped))
    for content in changes:
        path.write_bytes(content)
        try: again = Curation.load(path, ids, labels, x)
        except InputError as e:
            assert '\n' not in str(e)
            refused += 1
            if 'is damaged' not in str(e): continue
            kept = str(e).split('kept as ')[1].split(',')[0]
            assert not path.exists() and path.with_name(kept).read_bytes() == content
        else: assert len(again.labels) == 40                          # a change that does no harm
    assert refused > 60 and len(list(tmp_path.glob('*.damaged*'))) > 50


WRONG = [dict(n='40'), dict(n=10**12), dict(ids='!'), dict(labels=None), dict(edits=5), dict(format='1.0'),
         dict(edits=[dict(kind='erase')]),
         dict(edits=[dict(kind='merge', clusters='01')]),
         dict(edits=[dict(kind='move', ids=[1], cluster=0)]),
         dict(edits=[dict(kind='rename', cluster=True, name='x')])]


@pytest.mark.parametrize('change', WRONG)
def test_wrong_fields_are_refused(change, tmp_path):
    ids, labels, x = samples(40)
    path = tmp_path / 'c.json'
    Curation(ids, labels, x).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError): Curation.load(path, ids, labels, x)


def test_a_script_of_the_future_stays(tmp_path):
    path = tmp_path / 'c.json'
    Curation(*samples(40)).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(format=2)))
    with pytest.raises(InputError, match='format 2, which this version does not know'): read_script(path)
    assert path.is_file()


def test_csv_comes_back_whole(tmp_path):
    ids, labels, x = samples()
    ids[:len(HOSTILE)] = HOSTILE
    ids = np.array([i[:60] for i in ids])
    c = Curation(ids, labels, x)
    for k, name in enumerate(HOSTILE[:5]): c.rename(k, name)
    c.export_labels(tmp_path / 'labels.csv', [f'/data/{i}' for i in ids])
    head, *rows = read_csv(tmp_path / 'labels.csv')
    def column(name): return [row[head.index(name)] for row in rows]
    assert column('id') == ids.tolist() and column('path') == [f'/data/{i}' for i in ids]
    assert list(map(int, column('cluster'))) == c.labels.tolist()
    assert column('name') == [c.names.get(k, cluster_name(k)) for k in c.labels.tolist()]
    assert np.allclose(list(map(float, column('confidence'))), c.confidence(), atol=1e-4)


def test_folders_of_images(tmp_path):
    from nmc_workbench.data import load
    digits = load('digits', limit=30)
    c = Curation(digits.ids, digits.labels.numpy(), digits.pixels.flatten(1).float())
    for k, name in enumerate(HOSTILE): c.rename(k, name)
    c.noise(digits.ids[:2])
    c.export_folders(tmp_path / 'out', digits)
    files = sorted((tmp_path / 'out').rglob('*.png'))
    assert len(files) == 30 and {p.parent.parent for p in files} == {tmp_path / 'out'}
    assert len(list((tmp_path / 'out/noise').iterdir())) == 2
    assert {p.name for p in tmp_path.iterdir()} == {'out'}
    by_name = {p.stem: p for p in files}
    assert (np.asarray(Image.open(by_name[safe_name(digits.ids[7], 120)])) == digits.pixels[7, 0].numpy()).all()
    with pytest.raises(InputError, match='is there already, and not empty'): c.export_folders(tmp_path / 'out', digits)


def test_files_are_copied_as_they_are(tmp_path):
    from nmc_workbench.data import load
    for i in range(6):
        path = tmp_path / f'data/{"ab"[i % 2]}/{i // 2}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(path)
    images = load('folder', root=tmp_path / 'data')
    c = Curation(images.ids, [0] * 6, np.random.default_rng(0).normal(size=(6, 2)))
    c.export_folders(tmp_path / 'out', images)
    copies = sorted((tmp_path / 'out/00 cluster 0').iterdir())
    assert len(copies) == 6         # both a/0.png and b/0.png
    assert sorted(p.read_bytes() for p in copies) == sorted(p.read_bytes() for p in images.paths)


def test_bad_edits():
    ids, labels, x = samples(40)
    c = Curation(ids, labels, x)
    wrong = ((lambda: c.merge([1]), 'at least two different'),
             (lambda: c.merge([1, 99]), 'no sample is in cluster 99; clusters: 0, 1, 2, 3, 4'),
             (lambda: c.merge([-1, 1]), 'noise is not a cluster'),
             (lambda: c.split(0, 1), '1 parts'),
             (lambda: c.split(0, 1000), 'expected 2 to'),
             (lambda: c.split(0, 2, 'magic'), "unknown way to split 'magic'"),
             (lambda: c.move([], 1), 'no ids'),
             (lambda: c.move(['x', ids[0]], 1), "1 of 2 ids are not in this run, such as 'x'"),
             (lambda: c.move(ids[:2], 50), 'no sample is in cluster 50'),
             (lambda: c.rename(0, 'y' * 301), '301 characters'),
             (lambda: c.rename(0, 5), 'expected text'),
             (c.undo, 'no edit to undo'),
             (c.redo, 'no edit to redo'))
    for act, match in wrong:
        with pytest.raises(InputError, match=match): act()
    assert (c.labels == labels).all() and not c.edits


def test_bad_samples():
    ids, labels, x = samples(40)
    for given, match in (((ids, labels[:9], x), 'labels has 9 entries'), ((ids, labels, x[:9]), 'embedding has shape'),
                         ((np.repeat(ids[:20], 2), labels, x), '20 ids occur more than once')):
        with pytest.raises(InputError, match=match): Curation(*given)


@pytest.mark.timing
def test_sixty_thousand(tmp_path):
    n, rng = 60_000, np.random.default_rng(0)
    ids, labels = np.array([f'train/{i}' for i in range(n)]), rng.integers(0, 10, n)
    x = rng.normal(size=(n, 16)).astype('f4')
    c, path, took = Curation(ids, labels, x), tmp_path / 'c.json', {}
    acts = dict(merge=lambda: c.merge([1, 2]), move=lambda: c.move(ids[:5000], 0), undo=c.undo, redo=c.redo,
                confidence=c.confidence, save=lambda: c.save(path), load=lambda: Curation.load(path, ids, labels, x))
    for name, act in acts.items():
        start = time.perf_counter()
        act()
        took[name] = round(1000 * (time.perf_counter() - start), 1)
    print(took, path.stat().st_size)
    assert max(took[k] for k in ('merge', 'move', 'undo', 'redo')) < 1000 and max(took.values()) < 10_000
