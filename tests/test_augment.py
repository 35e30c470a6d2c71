"Augmentation against torchvision, image by image: values, laws of the parameters, seeds, errors."
import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode as Mode, functional as TF

from nmc_workbench.augment import image_ops as ops
from nmc_workbench.augment import Augment, preset, presets
from nmc_workbench.augment.operations import Affine, Blur, Brightness, CentreCrop, ColorJitter, Flip, Grey, Normalise
from nmc_workbench.augment.operations import PadCrop, Perspective, PointNoise, RandomSource, Resize, ResizedCrop
from nmc_workbench.augment.operations import Solarise
from nmc_workbench.augment.presets import CIFAR, digits_preset
from nmc_workbench.core.errors import InputError

LEVEL = 1 / 255


def seeded(seed=0): return torch.Generator().manual_seed(seed)
def dice(seed=0): return RandomSource(seeded(seed), torch.device('cpu'))
def photos(n, c, h, w, seed=1): return torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=seeded(seed))
def floats(*size, seed=1): return torch.rand(*size, generator=seeded(seed))
def far(a, b): return float((a - b).abs().max())


def crop(x, box, size, mode=Mode.BILINEAR):
    "One image through torchvision's crop and resize; a negative width is a flip; what lies outside is zero."
    top, height, left, width = (int(v) for v in box)
    out = TF.resized_crop(x, top, left + min(width, 0), height, abs(width), list(size), mode).clamp(0, 1)
    return TF.horizontal_flip(out) if width < 0 else out


# ---- every operation equals torchvision's, for the same parameters

@pytest.mark.parametrize('c', [1, 3])
@pytest.mark.parametrize('mode', [Mode.BILINEAR, Mode.BICUBIC])
@pytest.mark.parametrize('size', [(31, 45), (32, 32), (9, 80)])
@pytest.mark.parametrize('out', [(32, 32), (11, 7), (50, 61)])
def test_crop_and_resize(c, mode, size, out):
    part = ResizedCrop(out, interpolation=mode.value).draw(dice(), 12, size)
    x = floats(12, c, *size)
    pixels = (x * 255).byte()
    ours = Augment([ResizedCrop(out, interpolation=mode.value)])(pixels, seeded())
    assert far(ours, torch.stack([crop(p / 255, b, out, mode) for p, b in zip(pixels, part.box)])) < 1e-4
    ours = Augment([Resize(out, mode.value)])(pixels)
    assert far(ours, TF.resize(pixels / 255, list(out), mode, antialias=True).clamp(0, 1)) < 1e-4


@pytest.mark.parametrize('size,out,pad', [((31, 20), (32, 28), 4), ((16, 16), (9, 5), 0), ((8, 8), (20, 20), 6)])
def test_padded_crop_moves_pixels_unchanged(size, out, pad):
    pixels = photos(40, 3, *size)
    box = PadCrop(out, pad).draw(dice(), 40, size).box.int().tolist()
    wide = TF.pad(pixels / 255, [pad])
    theirs = torch.stack([TF.crop(w, top + pad, left + pad, *out) for w, (top, _, left, _) in zip(wide, box)])
    assert torch.equal(Augment([PadCrop(out, pad)])(pixels, seeded()), theirs)


def test_centre_crop_and_flip():
    pixels = photos(30, 3, 31, 28)
    for size in [(20, 20), (9, 28), (31, 1)]:
        assert torch.equal(Augment([CentreCrop(size)])(pixels), TF.center_crop(pixels, list(size)) / 255)
    assert Augment([CentreCrop(.5)])(pixels).shape[2:] == (16, 14)
    assert torch.equal(Augment([Flip(1)])(pixels, seeded()), TF.horizontal_flip(pixels) / 255)
    out, flipped = Augment([Flip()])(pixels, seeded()), TF.horizontal_flip(pixels) / 255
    assert 0 < sum(torch.equal(a, b) for a, b in zip(out, flipped)) < 30


@pytest.mark.parametrize('c', [1, 3])
@pytest.mark.parametrize('size', [(31, 45), (28, 28), (8, 8)])
@pytest.mark.parametrize('mode', [Mode.BILINEAR, Mode.NEAREST])
def test_affine(c, size, mode):
    op = Affine(40, (.2, .1), (.6, 1.5), (15, 10), mode.value)
    pixels = photos(30, c, *size)
    rows = [t.tolist() for t in op.parameters(dice(), 30, size)]
    theirs = torch.stack([TF.affine(x, a, t, s, k, mode) for x, a, t, s, k in zip(pixels / 255, *rows)])
    wrong = (Augment([op])(pixels, seeded()) - theirs).abs() > LEVEL / 10
    # the nearest pixel of a point within rounding of a pixel's edge is a matter of taste
    assert wrong.float().mean() <= (2e-4 if mode is Mode.NEAREST else 0)


@pytest.mark.parametrize('c', [1, 3])
@pytest.mark.parametrize('size', [(31, 45), (64, 64), (8, 9)])
def test_perspective(c, size):
    op, d = Perspective(.5, .6), dice()
    pixels = photos(30, c, *size)
    h, w = size
    on, corners = d.chance(.6, 30), op.corners(d, 30, size)
    start = [[0, 0], [w - 1, 0], [w - 1, h - 1], [0, h - 1]]
    def moved(x, e): return TF.perspective(x, start, e.int().tolist())
    theirs = torch.stack([moved(x, e) if o else x for x, o, e in zip(pixels / 255, on, corners)])
    out = Augment([op])(pixels, seeded())
    assert far(out, theirs) < LEVEL / 10 and 5 < on.sum() < 25
    # a warp that is not applied samples at pixel centres up to rounding
    assert far(out[~on], pixels[~on] / 255) < 1e-4


def in_order(x, f, turns, rank):
    "torchvision's jitter with given parameters."
    todo = [lambda x: TF.adjust_brightness(x, f[0]), lambda x: TF.adjust_contrast(x, f[1]),
            lambda x: TF.adjust_saturation(x, f[2]), lambda x: TF.adjust_hue(x, turns)]
    for k in np.argsort(rank): x = todo[k](x)
    return x


def all_in_order(images, f, turns, rank, on):
    "The same for a batch, where `on` says which images change."
    rows = zip(images, f.tolist(), turns.tolist(), rank.numpy(), on)
    return torch.stack([in_order(x, *row) if o else x for x, *row, o in rows])


@pytest.mark.parametrize('c', [1, 3])
@pytest.mark.parametrize('op', [ColorJitter(.4, .4, .4, .1, p=.8), ColorJitter(.8, .8, .8, .2), ColorJitter(1, 1, 1),
                                ColorJitter(hue=.5), ColorJitter(contrast=2)])
def test_jitter(c, op):
    pixels = photos(100, c, 13, 10)
    f, turns, rank, on = op.parameters(dice(), 100)
    theirs = all_in_order(pixels / 255, f, turns, rank, on)
    ours = Augment([op])(pixels, seeded())
    assert far(ours, theirs) < 2e-4
    assert torch.equal(ours[~on], pixels[~on] / 255)


@pytest.mark.parametrize('order', list(itertools.permutations(range(4))))
def test_jitter_in_each_order(order):
    x, f, turns = floats(6, 3, 9, 7), floats(6, 3, seed=2) * 2, floats(6, seed=3) - .5
    rank = torch.tensor(order).expand(6, 4)
    theirs = torch.stack([in_order(x[i], f[i].tolist(), float(turns[i]), order) for i in range(6)])
    assert far(ops.jitter(x.clone(), *ops.jitter_slots(f, rank, 3), turns), theirs) < 2e-4


def test_hue_on_edge_cases():
    levels = torch.tensor([0., .5, 1.])
    x = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 3, 9)     # greys, primaries, ties of every kind
    for turns in (-.5, -1/3, -.1, 0., .25, 1/3, .5):
        assert far(ops.shift_hue(x.clone(), torch.tensor([turns]))[0], TF.adjust_hue(x[0], turns)) < 1e-5
    assert far(ops.shift_hue(ops.shift_hue(x.clone(), torch.tensor([.2])), torch.tensor([-.2])), x) < 1e-5


def test_grey_solarise_normalise_brightness():
    pixels = photos(60, 3, 9, 8)
    on = dice().chance(.5, 60)[:, None, None, None]
    x = pixels / 255
    assert far(Augment([Grey(.5)])(pixels, seeded()), torch.where(on, TF.rgb_to_grayscale(x, 3), x)) < 1e-6
    assert torch.equal(Augment([Grey(.5)])(pixels, seeded())[~on[:, 0, 0, 0]], x[~on[:, 0, 0, 0]])
    assert torch.equal(Augment([Solarise(128, .5)])(pixels, seeded()), torch.where(on, TF.solarize(x, 128 / 255), x))
    assert far(Augment([Normalise(*CIFAR)])(pixels), TF.normalize(x, *map(list, CIFAR))) < 1e-5
    bright = Augment([Brightness(.5, 1.5)])(pixels, seeded())
    assert torch.allclose(bright, x * dice().uniform(.5, 1.5, 60)[:, None, None, None]) and bright.max() > 1


@pytest.mark.parametrize('c', [1, 3])
@pytest.mark.parametrize('kernel,size', [(3, (5, 4)), (9, (24, 31)), (9, (5, 5)), (1, (3, 3))])
def test_blur(c, kernel, size):
    pixels, sigma = photos(10, c, *size), dice().uniform(.1, 2., 10)
    theirs = torch.stack([TF.gaussian_blur(x, [kernel] * 2, [float(s)] * 2) for x, s in zip(pixels / 255, sigma)])
    assert far(Augment([Blur(kernel, (.1, 2.))])(pixels, seeded()), theirs) < 1e-5


def test_values_of_the_published_program(request):
    g = np.load(request.path.parent / 'golden/nmce/aug.npz')
    image = torch.from_numpy(g['img']).permute(2, 0, 1)[None]
    for k in range(3):
        size, sigma = g[f'blur{k}_args']
        ours = ops.blur(image / 255, ops.gaussian_kernel(torch.tensor([sigma]).float(), int(size))) * 255
        above = ours[0].permute(1, 2, 0).numpy() - g[f'blur{k}']
        assert above.min() > -1e-3 and above.max() < 1 + 1e-3          # it truncates to bytes, we do not
    ours = Augment([Solarise(128, 1.)])(image, seeded())
    assert np.array_equal((ours[0] * 255).round().byte().permute(1, 2, 0).numpy(), g['solarize'])
    x, u = torch.from_numpy(g['bright_img']).float()[None], torch.from_numpy(g['bright_u']).view(1)
    assert far(Brightness(.5, 1.5).apply(x.clone(), .5 + u)[0].double(), torch.from_numpy(g['bright_out'])) < 1e-6


# ---- chains: one resampling equals the sequence

def sequence(chain, x, d):
    "Geometry of a chain, operation after operation, by torchvision; parameters from `d`."
    at = tuple(x.shape[2:])
    for op in chain:
        part = op.draw(d, len(x), at)
        mode = Mode.BICUBIC if part.cubic else Mode.BILINEAR
        x, at = torch.stack([crop(i, b, part.out, mode) for i, b in zip(x, part.box)]), part.out
    return x


@pytest.mark.parametrize('chain', [
    [ResizedCrop(32), Flip()],
    [ResizedCrop((20, 31)), PadCrop(28, 6), Flip(), Resize(40)],
    [Flip(), PadCrop((30, 40), 4), Resize(16), Flip(), CentreCrop(10)],
    [ResizedCrop(24, interpolation='bicubic'), Flip()],
    [Flip(), Flip(), Flip()],
], ids=str)
@pytest.mark.parametrize('c', [1, 3])
def test_axis_aligned_chain_equals_the_sequence(chain, c):
    pixels = photos(20, c, 33, 37)
    augment = Augment(chain)
    assert len(augment.draw(dice(), pixels.shape)[0]) == 1
    assert far(augment(pixels, seeded()), sequence(chain, pixels / 255, dice())) < 1e-5


def test_contrastive_chain_end_to_end():
    geometry, jit = [ResizedCrop(32), Flip()], ColorJitter(.4, .4, .4, .1, p=.8)
    pixels, d = photos(200, 3, 32, 32), dice()
    x = sequence(geometry, pixels / 255, d)
    x = all_in_order(x, *jit.parameters(d, 200))
    x = torch.stack([TF.rgb_to_grayscale(i, 3) if o else i for i, o in zip(x, d.chance(.2, 200))])
    theirs = TF.normalize(x, *map(list, CIFAR))
    assert far(preset('cifar_simclr_norm')(pixels, seeded()), theirs) * .2023 < LEVEL / 10


def test_flip_and_warp_are_one_sampling(monkeypatch):
    calls = []
    sample = torch.nn.functional.grid_sample
    monkeypatch.setattr(torch.nn.functional, 'grid_sample', lambda *a, **k: calls.append(1) or sample(*a, **k))
    pixels, d = photos(20, 3, 21, 30), dice()
    ours = Augment([Flip(), Affine(30, (.1, .1), (.8, 1.2), 10)])(pixels, seeded())
    x = sequence([Flip()], pixels / 255, d)
    rows = [t.tolist() for t in Affine(30, (.1, .1), (.8, 1.2), 10).parameters(d, 20, (21, 30))]
    assert len(calls) == 1
    theirs = torch.stack([TF.affine(i, *row, Mode.BILINEAR) for i, *row in zip(x, *rows)])
    assert far(ours, theirs) < LEVEL / 10


@pytest.mark.parametrize('nearest', [False, True])
def test_warp_after_a_crop_sees_the_crop_only(nearest):
    op = Affine(30, (.1, .1), (.5, 1.2), 10, 'nearest' if nearest else 'bilinear')
    for first in (PadCrop(20), PadCrop((24, 26), 5)):
        pixels, d = photos(20, 3, 28, 30), dice()
        ours = Augment([first, Flip(), op])(pixels, seeded())
        x = sequence([first, Flip()], pixels / 255, d)
        rows = [t.tolist() for t in op.parameters(d, 20, tuple(x.shape[2:]))]
        mode = Mode.NEAREST if nearest else Mode.BILINEAR
        theirs = torch.stack([TF.affine(i, *row, mode) for i, *row in zip(x, *rows)])
        assert ((ours - theirs).abs() > LEVEL / 10).float().mean() <= (5e-4 if nearest else 0)


def test_shrinking_before_a_warp_keeps_its_antialias():
    pixels, d = photos(10, 1, 64, 64), dice()
    ours = Augment([Resize(16), Perspective(.3, 1.)])(pixels, seeded())
    x = TF.resize(pixels / 255, [16, 16], antialias=True)
    d.chance(1., 10)
    corners = Perspective(.3, 1.).corners(d, 10, (16, 16)).int().tolist()
    start = [[0, 0], [15, 0], [15, 15], [0, 15]]
    assert far(ours, torch.stack([TF.perspective(i, start, e) for i, e in zip(x, corners)])) < LEVEL / 10


def test_two_warps_multiply():
    # a ramp survives any number of linear interpolations
    smooth = torch.linspace(0, 255, 40).round().byte().expand(8, 1, 40, 40)
    op, d = Affine(10, scale=(1.2, 1.4)), dice()
    ours = Augment([op, op])(smooth, seeded())
    assert len(Augment([op, op]).draw(dice(), smooth.shape)[0]) == 1
    x = smooth / 255
    for _ in range(2):
        rows = [t.tolist() for t in op.parameters(d, 8, (40, 40))]
        x = torch.stack([TF.affine(i, a, t, s, k, Mode.BILINEAR) for i, a, t, s, k in zip(x, *rows)])
    assert far(ours[..., 8:-8, 8:-8], x[..., 8:-8, 8:-8]) < LEVEL


# ---- the laws of the parameters are torchvision's

N = 4000
def same_law(a, b): return stats.ks_2samp(np.asarray(a), np.asarray(b)).pvalue > 1e-3


@pytest.mark.parametrize('size,kw', [
    ((32, 32), {}), ((96, 60), dict(scale=(.2, 1.))), ((64, 12), dict(scale=(.5, 1.))),
    ((12, 64), dict(scale=(.5, 1.))), ((32, 32), dict(scale=(.765625,) * 2, ratio=(1., 1.)))])
def test_law_of_resized_crops(size, kw):
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(32, **kw)
    image = torch.empty(3, *size)
    drawn = [theirs.make_params([image]) for _ in range(N)]
    ref = np.array([[p['top'], p['height'], p['left'], p['width']] for p in drawn], float)
    ours = ResizedCrop(32, **kw).draw(dice(), N, size).box.double().numpy()
    for k in range(4): assert same_law(ours[:, k], ref[:, k]), 'top height left width'.split()[k]
    laws = [lambda b: b[:, 1] * b[:, 3], lambda b: b[:, 3] / b[:, 1],
            lambda b: b[:, 0] / (size[0] - b[:, 1] + 1), lambda b: b[:, 2] / (size[1] - b[:, 3] + 1)]
    for law in laws:
        assert same_law(law(ours), law(ref))
    if size == (64, 12):    # the central fallback
        share, wanted = (ours[:, 1] == 16).mean(), (ref[:, 1] == 16).mean()
        assert abs(share - wanted) < .03 and share > .5
    if kw.get('ratio'): assert (ours[:, [1, 3]] == 28).all()


def test_law_of_affine_and_perspective():
    torch.manual_seed(0)
    image = torch.empty(3, 40, 28)
    theirs = v2.RandomAffine(15, (.1, .2), (.8, 1.2), (-10, 10, -5, 5))
    ref = [theirs.make_params([image]) for _ in range(N)]
    angle, shift, zoom, shear = Affine(15, (.1, .2), (.8, 1.2), (10, 5)).parameters(dice(), N, (40, 28))
    pairs = [(angle, [p['angle'] for p in ref]), (zoom, [p['scale'] for p in ref])]
    pairs += [(shift[:, k], [p['translate'][k] for p in ref]) for k in (0, 1)]
    pairs += [(shear[:, k], [p['shear'][k] for p in ref]) for k in (0, 1)]
    for k, (a, b) in enumerate(pairs): assert same_law(a, b), k
    # the coefficients fix the corners: they map them to the image's
    theirs, ours = v2.RandomPerspective(.3), Perspective(.3).corners(dice(), N, (40, 28))
    drawn = np.array([np.array(theirs.make_params([image])['coefficients']) for _ in range(N)])
    mine = ops.perspective_matrix(ours, (40, 28)).double()
    mine = (mine / mine[:, 2:, 2:]).view(N, 9)[:, :8].numpy()
    # whole pixels make ties, which rounding would split: compare to five digits
    for k in range(8): assert same_law(mine[:, k].round(5), drawn[:, k].round(5)), k
    # int(.3 * 14) + 1 = 5 columns at either side
    assert ours[..., 0].unique().tolist() == [*range(5), *range(23, 28)]


def test_law_of_jitter():
    torch.manual_seed(0)
    theirs = v2.ColorJitter(.4, .4, .2, .1)
    ref = [theirs.make_params([]) for _ in range(N)]
    f, turns, rank, on = ColorJitter(.4, .4, .2, .1, p=.8).parameters(dice(), N)
    for k, name in enumerate(('brightness_factor', 'contrast_factor', 'saturation_factor')):
        assert same_law(f[:, k], [p[name] for p in ref])
    assert same_law(turns, [p['hue_factor'] for p in ref])
    orders = np.unique(rank.numpy(), axis=0, return_counts=True)[1]
    assert len(orders) == 24 and stats.chisquare(orders).pvalue > 1e-3
    assert stats.binomtest(int(on.sum()), N, .8).pvalue > 1e-3
    f = ColorJitter(2.).parameters(dice(), N)[0][:, 0]
    assert f.min() >= 0 and f.max() <= 3 and same_law(f, dice(9).uniform(0, 3, N))


def test_law_of_the_rest():
    on = {'flip': Flip(.3).draw(dice(), N, (8, 8)).box[:, 3] < 0,
          'grey': Grey(.3).draw(dice(), N, 3, (8, 8))[0][:, 0, 1] > 0,
          'solarise': Solarise(128, .3).draw(dice(), N, 3, (8, 8))[0] < 1}
    for name, hits in on.items(): assert stats.binomtest(int(hits.sum()), N, .3).pvalue > 1e-3, name
    taps, = Blur(3, (.5, 2.)).draw(dice(), N, 1, (8, 8))
    sigma = (-2 * (taps[:, 0] / taps[:, 1]).log()) ** -.5
    assert stats.kstest(sigma.numpy(), stats.uniform(.5, 1.5).cdf).pvalue > 1e-3
    box = PadCrop(32, 8).draw(dice(), N, (32, 32)).box
    for k in (0, 2): assert stats.chisquare(np.bincount(box[:, k].int().numpy() + 8, minlength=17)).pvalue > 1e-3
    factor, = Brightness(.5, 1.5).draw(dice(), N, 1, (8, 8))
    assert stats.kstest(factor.numpy(), stats.uniform(.5, 1).cdf).pvalue > 1e-3
    noise = Augment([PointNoise(.2)])(torch.zeros(N, 2), seeded())
    assert stats.kstest(noise.flatten().numpy(), stats.norm(0, .2).cdf).pvalue > 1e-3


def test_draws_are_independent_between_images_and_parameters():
    box = ResizedCrop(32).draw(dice(), N, (64, 64)).box
    area, ratio = box[:, 1] * box[:, 3], box[:, 3] / box[:, 1]
    for a, b in [(area[:-1], area[1:]), (ratio[:-1], ratio[1:]), (box[:-1, 0], box[1:, 0])]:
        assert abs(stats.spearmanr(a, b)[0]) < 4 / N ** .5
    f, turns, *_ = ColorJitter(.4, .4, .4, .1).parameters(dice(), N)
    assert np.abs(np.corrcoef(np.c_[f.numpy(), turns.numpy()].T) - np.eye(4)).max() < 4 / N ** .5


# ---- seeds, pieces, devices

COLOUR = ('cifar_sup', 'cifar_simclr_norm', 'cifar_byol', 'stl10_contrastive', 'imagenet', 'coil', 'sela', 'sela_cifar',
          'deepcluster')
OPTIONS = dict(cached=dict(n=1000), views=dict(
    rotation=20, flip=True, vertical=True, jitter=True, autocontrast=True, equalize=True))


def batch_for(name, n=30):
    if name == 'spiral': return torch.randn(n, 2, generator=seeded(5))
    if name == 'cached': return torch.randn(n, 2 * 1001, generator=seeded(5))
    return photos(n, 3 if name in COLOUR else 1, 32, 32)


@pytest.mark.parametrize('name', presets())
def test_preset_is_seeded_per_image_and_independent_of_pieces(name):
    augment, pixels = preset(name, **OPTIONS.get(name, {})), batch_for(name)
    before = torch.get_rng_state()
    a = augment(pixels, seeded())
    assert torch.equal(before, torch.get_rng_state())
    assert a.dtype == torch.float32 and a.isfinite().all()
    assert torch.equal(a, augment(pixels, seeded())) and not torch.equal(a, augment(pixels, seeded(1)))
    for chunk in (1, 7 * 3 * 96 * 96):
        augment.chunk = chunk
        assert far(a, augment(pixels, seeded())) < 1e-5
    same = pixels[:1].expand_as(pixels)
    views = augment(same, seeded())
    assert len(torch.unique(views.flatten(1), dim=0)) > 25           # different draws for equal images
    plain = augment.plain
    assert torch.equal(plain(pixels), plain(pixels, seeded(3))) and repr(plain) == repr(plain.plain)
    assert plain(pixels).shape == (a.shape if name not in ('stl10_contrastive',) else pixels.shape)
    assert augment(pixels[:0], seeded()).shape == (0, *a.shape[1:])


def test_generator_advances():
    g, augment, pixels = seeded(), preset('cifar_simclr_norm'), photos(4, 3, 32, 32)
    first, second = augment(pixels, g), augment(pixels, g)
    assert not torch.equal(first, second)
    g = seeded()
    assert torch.equal(first, augment(pixels, g)) and torch.equal(second, augment(pixels, g))


def test_input_is_left_alone_and_layout_does_not_matter():
    pixels = photos(8, 3, 32, 32)
    copy = pixels.clone()
    for name in ('cifar_simclr_norm', 'cifar_byol', 'coil'):
        a = preset(name)(pixels, seeded())
        assert torch.equal(pixels, copy)
        assert far(a, preset(name)(pixels.contiguous(memory_format=torch.channels_last), seeded())) < 1e-5
    points = torch.ones(5, 2)
    preset('spiral')(points, seeded())
    assert torch.equal(points, torch.ones(5, 2)) and torch.equal(preset('spiral').plain(points), points)


class NoHostReads(TorchDispatchMode):
    "Refuses what would wait for a device: reading a value back, or shapes that depend on values."
    forbidden = ('_local_scalar_dense', 'nonzero', 'masked_select', 'equal.default', 'is_nonzero',
                 '_linalg_check_errors')

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        assert not any(f in name for f in self.forbidden), name
        if 'index' in name:
            indices = [i for a in args if isinstance(a, (list, tuple)) for i in a]
            assert not any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in indices), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('name', presets())
def test_no_host_reads(name):
    augment, batch = preset(name, **OPTIONS.get(name, {})), batch_for(name)
    with NoHostReads(): augment(batch, seeded())
    # the meta device has no values at all: whatever is not the draw runs without them
    assert augment(batch.to('meta'), seeded()).shape == augment(batch, seeded()).shape


def test_autocast_does_not_coarsen():
    pixels = photos(8, 3, 32, 32)
    with torch.autocast('cpu', torch.bfloat16): a = preset('cifar_simclr_norm')(pixels, seeded())
    assert torch.equal(a, preset('cifar_simclr_norm')(pixels, seeded()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('name', presets())
def test_same_views_on_cuda(name):
    augment, batch = preset(name), batch_for(name)
    assert ((augment(batch.cuda(), seeded()).cpu() - augment(batch, seeded())).abs() > 1e-2).float().mean() < 1e-3
    augment(batch.cuda(), torch.Generator('cuda').manual_seed(0))


# ---- presets

def test_presets_carry_the_published_numbers():
    byol = [type(o).__name__ for o in preset('CIFAR_byol').operations]
    assert byol == ['ResizedCrop', 'Flip', 'ColorJitter', 'Grey', 'Solarise', 'Normalise']
    assert preset('cifar_byol').operations[2] == ColorJitter(.4, .4, .2, .1, p=.8)
    assert preset('cifar_simclr_norm').operations[0] == ResizedCrop(32, (.08, 1.), (3/4, 4/3))
    strong = [ColorJitter(.8, .8, .8, .2, p=.8), Grey(.2), Blur(9, (.1, 2.))]
    assert preset('stl10_contrastive').operations[2:] == strong
    assert repr(preset('fmnist')) == repr(preset('fashionmnist'))
    assert preset('FMNIST').operations[0].interpolation == 'nearest'
    assert preset('coil').operations == [Flip(.5), Perspective(.3, .6), ColorJitter(.8, .8, .8, .2)]
    assert preset('digits').operations[0] == Affine(15., (1/8, 1/8), (.85, 1.15), 10.)
    assert digits_preset(degrees=5, brightness=None).operations == [Affine(5, (1/8, 1/8), (.85, 1.15), 10.)]
    assert eval(repr(preset('imagenet'))).operations == preset('imagenet').operations
    shift = preset('digits').operations[0].parameters(dice(), 500, (8, 8))[1]
    assert shift.unique().tolist() == [-1, 0, 1]


def test_sizes_and_plain_transforms():
    pixels = photos(4, 3, 40, 50)
    sizes = dict(cifar_sup=32, cifar_simclr_norm=32, cifar_byol=32, imagenet=96, stl10_contrastive=96)
    for name, out in sizes.items():
        assert preset(name)(pixels, seeded()).shape[2:] == (out, out)
        small = preset(name, size=24)
        assert small(pixels, seeded()).shape[2:] == small.plain(pixels).shape[2:] == (24, 24)
    assert preset('coil')(pixels, seeded()).shape[2:] == (40, 50)
    assert far(preset('imagenet').plain(pixels), TF.resize(pixels / 255, [96, 96], antialias=True)) < 1e-5
    small = photos(4, 3, 32, 32)
    theirs = TF.normalize(TF.resize(TF.center_crop(small / 255, [28, 28]), [32, 32], antialias=True), *map(list, CIFAR))
    assert far(preset('cifar_sup').plain(small), theirs) < 1e-4
    assert far(preset('cifar_simclr_norm').plain(small), TF.normalize(small / 255, *map(list, CIFAR))) < 1e-5
    assert torch.equal(preset('coil').plain(small), small / 255)


def test_flip_commutes_with_byols_colour():
    x = floats(50, 3, 12, 12)
    d = dice()
    steps = [(o, o.draw(d, 50, 3, (12, 12))) for o in preset('cifar_byol').operations[2:]]
    def colour(x):
        for o, p in steps: x = o.apply(x.clone(), *p)
        return x
    assert far(colour(x.flip(3).contiguous()), colour(x).flip(3)) < 1e-4


# ---- errors: one line, with the values

@pytest.mark.parametrize('call,words', [
    (lambda: preset('cifar_simclr'), ['cifar_simclr_norm', 'digits']),
    (lambda: preset('spiral', size=3), ['size=3']),
    (lambda: preset('coil')(torch.rand(2, 3, 8, 8), seeded()), ['float32', 'uint8']),
    (lambda: preset('coil')(photos(1, 3, 8, 8)[0], seeded()), ['(3, 8, 8)', '[B, C, H, W]']),
    (lambda: preset('coil')(photos(1, 3, 8, 8)), ['generator']),
    (lambda: preset('spiral')(torch.zeros(4, 2)), ['generator']),
    (lambda: preset('spiral')(photos(1, 3, 8, 8), seeded()), ['uint8', 'float32 [B, D]']),
    (lambda: preset('cifar_simclr_norm')(photos(2, 1, 32, 32), seeded()), ['3 means', '1 channel', 'fashionmnist']),
    (lambda: preset('cifar_simclr_norm').plain(photos(2, 1, 32, 32)), ['3 means', '1 channel']),
    (lambda: preset('coil')(photos(2, 4, 8, 8), seeded()), ['4 channels']),
    (lambda: Flip(-.1), ['Flip: p=-0.1', 'from 0 to 1']),
    (lambda: ColorJitter(p=2), ['p=2']),
    (lambda: ColorJitter(brightness=-1), ['brightness=-1']),
    (lambda: ColorJitter(hue=.7), ['hue=0.7']),
    (lambda: ResizedCrop(0), ['size=0']),
    (lambda: ResizedCrop(32, scale=(.5, .2)), ['scale=(0.5, 0.2)']),
    (lambda: ResizedCrop(32, ratio=(0, 1)), ['ratio=(0, 1)']),
    (lambda: Resize(8, 'nearest'), ["'nearest'", 'bicubic']),
    (lambda: Augment([PadCrop(40, 2)])(photos(1, 1, 28, 28), seeded()), ['size=40', '32 x 32']),
    (lambda: Augment([CentreCrop(40)])(photos(1, 1, 28, 28)), ['size=40', '28 x 28']),
    (lambda: Augment([Blur(9)])(photos(1, 1, 4, 4), seeded()), ['kernel=9', '4 x 4']),
    (lambda: Blur(4), ['kernel=4', 'odd']),
    (lambda: Blur(3, (0, 1)), ['sigma=(0, 1)']),
    (lambda: Solarise(300), ['threshold=300']),
    (lambda: Normalise((.5,), (0.,)), ['std=(0.0,)']),
    (lambda: Normalise((.5,), (.1, .2)), ['mean=(0.5,)']),
    (lambda: Affine(translate=(2, 0)), ['translate=(2, 0)']),
    (lambda: Affine(interpolation='bicubic'), ["'bicubic'"]),
    (lambda: Perspective(2.), ['distortion=2.0']),
    (lambda: Brightness(2, 1), ['low=2']),
    (lambda: PointNoise(-1), ['std=-1']),
    (lambda: Augment([Grey(.2), Flip()]), ['Flip(0.5)', 'Grey(0.2)', 'geometry first']),
    (lambda: Augment([Brightness(.5, 2), ColorJitter(.1)]), ['[0, 1]', 'Brightness']),
    (lambda: Augment([Flip(), PointNoise(.1)]), ['points']),
    (lambda: Augment([v2.RandomHorizontalFlip()]), ['no operation']),
    (lambda: Augment([Flip()], plain=[Flip()]), ['plain transform', 'random']),
])
def test_errors_are_one_line_with_the_values(call, words):
    with pytest.raises(InputError) as e: call()
    assert '\n' not in str(e.value) and all(w in str(e.value) for w in words), e.value


@pytest.mark.parametrize('channels', [1, 3])
def test_spread_values_are_those_of_torchvision(channels):
    from torchvision.transforms.v2 import functional as TF
    from nmc_workbench.augment.image_ops import autocontrast, equalise
    pixels = photos(6, channels, 20, 24)
    pixels[0] = 77                                                  # one value: nothing to spread
    x = pixels.float() / 255
    assert far(autocontrast(x), TF.autocontrast(x)) < 1e-5
    assert torch.equal((equalise(x) * 255).round().byte(), TF.equalize(pixels))


def test_a_vertical_flip_turns_images_upside_down():
    from nmc_workbench.augment import Augment
    from nmc_workbench.augment.operations import Flip
    pixels = photos(4, 3, 8, 8)
    assert far(Augment([Flip(1., vertical=True)])(pixels, seeded()), pixels.flip(2) / 255) < 1e-5
