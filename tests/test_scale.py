"""The arithmetic of a billion images: bytes against the arrays of real stages, and laws that every line must obey."""
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))
import scale  # noqa: E402

from nmc_workbench.methods.anchor_neighbourhoods.memory import Memory  # noqa: E402
from nmc_workbench.nets import backbone  # noqa: E402

RECORD = dict(parameters=23_508_032, features=2048, index_bytes=300)


@pytest.fixture
def c(): return scale.constants(RECORD)


def changed(c, **more): return SimpleNamespace(**vars(c) | more)
def bytes_of(*tensors): return sum(t.numel() * t.element_size() for t in tensors)


def test_a_resnet_50_is_as_large_as_it_says():
    with torch.device('meta'): network, features = backbone('torchvision:resnet50')
    found = scale.record('scale')
    assert sum(p.numel() for p in network.parameters()) == found['parameters'] == RECORD['parameters']
    assert features == found['features'] == RECORD['features']


def test_bytes_are_those_of_the_arrays(c):
    n, heads = 1000, 10
    small = changed(c, n=n, device_memory=1e99, sela_heads=heads)
    memory = Memory(n, c.z_dim)
    state = torch.zeros(n, dtype=torch.int64), torch.zeros(n), torch.zeros(n, 1, dtype=torch.int64)
    of_and = scale.anchors(small, 8)
    assert of_and['memory, per device'] == scale.size(bytes_of(memory.rows) / 8)
    assert of_and['the same while anchors are discovered, per device'] == scale.size(bytes_of(memory.rows) * 2)
    assert of_and['position, entropy and one neighbour, per device'] == scale.size(bytes_of(*state))
    x = torch.nn.functional.normalize(torch.randn(c.batch, c.z_dim), dim=1)
    assert of_and['logits of a step, which are not kept, per device'] == scale.size(bytes_of(memory.logits(x)))
    labels = torch.zeros(heads, n, dtype=torch.int64)
    assert scale.sela(small, 8)['labels of all heads, per device'] == scale.size(bytes_of(labels))
    own = torch.zeros(n // 8, c.features)
    assert scale.sela(small, 8)['features of an update, per device'] == scale.size(bytes_of(own))
    grams = torch.zeros(1 + c.nmce_k, c.z_dim, c.z_dim)
    assert scale.nmce(small, 8)['one Gram matrix per cluster and one of all, per device'] == scale.size(bytes_of(grams))
    assert scale.deepcluster(small, 8)['features, per device'] == scale.size(bytes_of(own))


def test_times_follow_from_rates(c):
    assert scale.epoch_of(c, 8) == pytest.approx(8 * scale.epoch_of(c, 64)) == pytest.approx(1e9 / 8 / 2500)
    assert scale.forward_pass(c, 8) == pytest.approx(scale.epoch_of(c, 8) / 3)
    assert scale.product(c, 2, 3, 5) == pytest.approx(60 / (67e12 * .4))
    assert scale.around(1, 100) == 0 and scale.around(2, 100) == 100 and scale.around(512, 100) == pytest.approx(200, 1)
    assert scale.sela(c, 64)['iteration of one head'] == scale.span(2 * 1e9 * 3000 * 2048 / 64 / (67e12 * .4))
    assert scale.nmc(c, 8)['features of all images, two views, by the frozen encoder'] == scale.span(2e9 / 3 / 8 / 2500)


def test_what_does_not_fit_is_bold(c):
    assert scale.anchors(c, 512)['the same while anchors are discovered, per device'] == '**1.02 TB**'
    assert scale.anchors(c, 512)['memory, per device'] == '1 GB'
    roomy = changed(c, device_memory=1e15)
    assert not any('**' in text for of in scale.METHODS.values() for text in of(roomy, 8).values())


@pytest.mark.parametrize('words, x', [('0 B', 0), ('999 B', 999), ('1 kB', 1e3), ('1.5 GB', 1.5e9),
                                      ('1 GB', 999.9e6), ('8.19 TB', 8.192e12)])
def test_bytes_in_words(words, x): assert scale.size(x) == words


@pytest.mark.parametrize('words, x', [('5 ms', .005), ('1.5 s', 1.5), ('119 s', 119), ('2 min', 120), ('2 h', 7200),
                                      ('2.5 days', 2.5 * 86_400), ('10 years', 10 * 365 * 86_400)])
def test_seconds_in_words(words, x): assert scale.span(x) == words


@pytest.mark.parametrize('name', scale.METHODS)
def test_every_table_has_a_place_on_the_page_and_text_in_every_cell(name):
    head, rows = scale.lines(name, RECORD)
    assert len(head) == 4 and all(len(r) == 4 and all(r) and 'nan' not in ''.join(r) for r in rows) and len(rows) >= 5
    assert f'<!-- bench:scale_{name} -->' in (ROOT / 'docs/pages/howto/internet_scale.md').read_text()


def test_every_constant_says_where_it_is_from():
    head, rows = scale.sources(RECORD)
    assert all(len(r) == len(head) and all(r) for r in rows)
    assert {of for *_, of in scale.ASSUMED.values()} == {scale.SHEET, scale.ASSUMPTION, scale.CHOICE}
    assert all('`' in of for *_, of in scale.measured(RECORD).values())
