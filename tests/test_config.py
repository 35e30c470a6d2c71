"""Parameters: conversion, ranges, comments, recipes."""
import dataclasses
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from fastcore.docments import docments

from nmc_workbench import augment, nets
from nmc_workbench.core.errors import InputError
from nmc_workbench.core.config import Config, convert, named, param
from nmc_workbench.data import names
from nmc_workbench.methods import NMCE, NMCEConfig
from nmc_workbench.methods.config import RunConfig, default_run_dir, with_recipe
from nmc_workbench.methods.nmce.config import RECIPES, recipe
from nmc_workbench.nets.heads import check_input

GOOD = [
    ('true', bool, True), ('True', bool, True), ('false', bool, False), ('off', bool, False),
    (True, bool, True), (np.bool_(True), bool, True),
    ('None', int | None, None), ('none', float | None, None), ('null', str | None, None), ('', str | None, None),
    (None, bool | None, None),
    ('2', int, 2), (2., int, 2), ('2.0', int, 2), ('6e2', int, 600), (np.int64(3), int, 3), (torch.tensor(4), int, 4),
    (2 ** 60 + 1, int, 2 ** 60 + 1),
    ('1e-3', float, .001), (1, float, 1.), (np.float32(.5), float, .5), ('-1', int, -1),
    ('None', str, 'None'), ('cifar10', str, 'cifar10'), (Path('runs/a'), str | None, 'runs/a'),
]
BAD = [
    ('maybe', bool), (1, bool), (0., bool), (None, bool), (True, int), (True, float),
    ('2.5', int), (2.5, int | None), ('many', int | None), ('', int),
    ([1], int), ({}, float), (1j, float), (10 ** 400, float), (float('nan'), int), (float('inf'), int),
    ('12345678901234567890.0', int), (3, str), (None, str), (b'a', str),
    (np.array([1]), int),
]


@pytest.mark.parametrize('value, kind, wanted', GOOD)
def test_convert(value, kind, wanted):
    got = convert('x', value, kind)
    assert got == wanted and type(got) is type(wanted)


@pytest.mark.parametrize('value, kind', BAD)
def test_convert_refuses_what_would_lose_something(value, kind):
    with pytest.raises(InputError, match=r'^x=.* is an? ?\w+; expected') as error: convert('x', value, kind)
    assert '\n' not in str(error.value)


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class Some(Config):
    n: int | None = param(None, low=2, high=9)
    x: float = param(.5, above=0, below=1)
    w: float = param(1., low=0)
    how: str | None = param('a', choices=('a', 'b'))


@pytest.mark.parametrize('values, message', [
    (dict(n=1), 'n=1 is too small; expected at least 2'), (dict(n='10'), 'n=10 is too large; expected at most 9'),
    (dict(x=0), 'x=0.0; expected more than 0'),
    (dict(x=1), 'x=1.0; expected less than 1'), (dict(x='nan'), 'x=nan; expected a finite number'),
    (dict(w=float('nan')), 'w=nan; expected a finite'),
    (dict(w='inf'), 'w=inf; expected a finite'), (dict(w=-1e-9), 'w=-1e-09 is too small'),
    (dict(how='c'), "how='c'; expected one of 'a', 'b'")])
def test_ranges(values, message):
    with pytest.raises(InputError, match=message.replace('.', r'\.')): Some(**values).checked()


def test_checked_leaves_the_original_alone():
    some = Some(n='3', x='0.25')
    assert some.checked().to_dict() == dict(n=3, x=.25, w=1., how='a') and some.n == '3'
    assert Some.names() == ['n', 'x', 'w', 'how'] and Some(how=None).checked().how is None


def test_from_names_takes_a_notebooks_globals():
    import os
    space = dict(n='3', x=.1, _dh=['x'], In=[''], Out={}, os=os, function=lambda: 0, Config=Config)
    assert Some.from_names(space).to_dict() == dict(n=3, x=.1, w=1., how='a')
    with pytest.raises(InputError, match="unknown parameter 'hwo'; did you mean 'how'\\? known: n, x, w, how"):
        Some.from_names({**space, 'hwo': 'b'})
    with pytest.raises(TypeError): Some(hwo='b')


def test_papermill_strings_through_the_whole_config():
    given = dict(epochs='600', lr='1e-3', resume='true', n_clusters='None', run_dir='none', frozen_bn_eval='false',
                 dataset='cifar10', amp='bf16', limit=100.)
    config = NMCEConfig.from_names(given)
    assert [getattr(config, k) for k in given] == [600, .001, True, None, None, False, 'cifar10', 'bf16', 100]


def test_unknown_parameter_of_a_method_names_the_nearest():
    with pytest.raises(InputError, match="unknown parameter 'epoch'; did you mean 'epochs'"):
        NMCEConfig.from_names(dict(epoch=3))


# Parameters that a recipe never sets: what data, how many clusters, where the run starts and goes.
FREE = {'limit', 'size', 'n_clusters', 'run_dir', 'cfgs', 'recipe', 'start_from', 'n_devices', 'n_nodes'}
ENCODER = {'encoder', 'encoder_weights', 'encoder_views', 'input_size', 'features_dir', 'train_encoder'}


def test_every_parameter_is_documented():
    # docments reads the comments of a class's own fields alone
    comments = {k: v for cls in (RunConfig, NMCEConfig) for k, v in docments(cls).items() if v}
    for f in dataclasses.fields(NMCEConfig):
        assert comments.get(f.name) and len(comments[f.name]) > 5, f.name
        assert f.metadata, f'{f.name} is not declared with param'
        assert not comments[f.name].endswith('.')
    assert NMCEConfig.names()[:len(RunConfig.names())] == RunConfig.names()


def test_defaults_fit_their_own_declaration():
    NMCEConfig().checked()
    hints = typing.get_type_hints(NMCEConfig)
    for f in dataclasses.fields(NMCEConfig): assert f.default is None or isinstance(f.default, hints[f.name]), f.name
    assert NMCEConfig().dataset in names()


@pytest.mark.parametrize('name', RECIPES)
def test_recipes_set_every_open_parameter_and_no_other(name):
    unset = {f.name for f in dataclasses.fields(NMCEConfig) if f.default is None}
    free = FREE | ENCODER - ({'encoder_views'} if name == 'frozen' else set())
    assert RECIPES[name].keys() == unset - free
    config = with_recipe(NMCEConfig(), RECIPES[name])
    assert {k for k, v in config.to_dict().items() if v is None} == free
    assert named(config.augment, 'preset')[0] in augment.presets()
    assert named(config.backbone, 'backbone')[0] in nets.names()


@pytest.mark.parametrize('dataset, shape', [
    ('mnist', (1, 28, 28)), ('usps', (1, 16, 16)), ('cifar100', (3, 32, 32)), ('stl10', (3, 96, 96)),
    ('spiral', (2,)), ('folder', (3, 64, 64)), ('digits', (1, 28, 28)), ('digits', (3, 32, 32)),
    ('digits', (3, 96, 96)), ('digits', (2,)), ('cifar10', (1, 28, 28))])
def test_every_kind_of_image_has_a_recipe_that_fits(dataset, shape):
    "Also where the name is the default's and the images are the user's own."
    config = with_recipe(NMCEConfig(dataset=dataset, n_clusters=3), recipe(dataset, shape))
    net = nets.SubspaceNet(*nets.backbone(config.backbone, shape[0]), config.z_dim, 3, 16)
    pixels = torch.rand(2, *shape) if len(shape) == 1 else torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
    views = augment.preset(config.augment)
    for view in (views(pixels, torch.Generator()), views.plain(pixels)): check_input(net, view.shape)


def test_the_user_wins_over_the_recipe():
    config = with_recipe(NMCEConfig(epochs='3', lr=.5), RECIPES['digits'])
    assert (config.epochs, config.lr, config.z_dim) == (3, .5, RECIPES['digits']['z_dim'])
    with pytest.raises(InputError, match='lr=-1.0; expected more than 0'):
        with_recipe(NMCEConfig(lr=-1), RECIPES['digits'])


def test_the_name_of_a_run_follows_from_what_it_computes():
    a = with_recipe(NMCEConfig(), RECIPES['digits'])
    name = default_run_dir('NMCE', a)
    assert name.parts[0] == 'runs' and name.name.startswith('nmce_digits_seed0_')
    elsewhere = dataclasses.replace(a, resume=True, device='cpu', checkpoint_every=3, data_dir='elsewhere')
    assert name == default_run_dir('NMCE', elsewhere)
    changes = [dict(seed=1), dict(lr=.1), dict(epochs=9), dict(limit=100)]
    assert len({name, *(default_run_dir('NMCE', dataclasses.replace(a, **d)) for d in changes)}) == 5


def test_the_estimators_constructor_takes_the_same_names():
    assert list(NMCE._get_param_names()) == sorted(NMCEConfig.names())
