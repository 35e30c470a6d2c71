"""Merge trees that GUDHI's ToMATo computed and a sweep over levels checked, one graph a file.

The folder can be replaced with NMC_GOLDEN_NMC: sizes, k and percentiles are read from the files."""
import os
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('gudhi')

from nmc_workbench.persistence import knn_edges, merge_tree

GOLDEN = Path(os.environ.get('NMC_GOLDEN_NMC', Path(__file__).parent / 'golden' / 'nmc'))
FILES = sorted(GOLDEN.glob('persistence_*.npz'))


@pytest.fixture(params=FILES, ids=lambda f: f.stem)
def case(request):
    with np.load(request.param) as f: return {k: f[k] for k in f.files}


def percentiles(case):
    "As they stand in the names of the fields, with the number."
    return [(key[7:], float(key[8:])) for key in case if re.fullmatch(r'labels_p[\d.]+', key)]


def renamed(a, b):
    "Whether two labellings differ at most by the names of the clusters."
    return len(set(zip(a, b))) == len(set(a)) == len(set(b))


def test_there_are_files():
    assert FILES


def test_diagram(case):
    tree = merge_tree(case['edges'], case['phi'])
    np.testing.assert_array_equal(tree.diagram, case['diagram'].reshape(-1, 2))
    np.testing.assert_array_equal(tree.immortal_births, case['immortal_births'])


def test_labels_at_each_percentile(case):
    tree = merge_tree(case['edges'], case['phi'])
    assert percentiles(case)
    for suffix, p in percentiles(case):
        tau = float(case[f'tau_{suffix}'])
        np.testing.assert_allclose(tree.tau_of(p), tau, rtol=1e-12)
        assert tree.n_clusters(tau) == case[f'n_clusters_{suffix}']
        for labels in (tree.labels(percentile=p), tree.labels(tau=tau)):
            assert renamed(labels, case[f'labels_{suffix}'])


def test_graph(case):
    wanted = np.sort(case['edges'], axis=1)
    np.testing.assert_array_equal(knn_edges(case['points'], int(case['k'])), np.unique(wanted, axis=0))
