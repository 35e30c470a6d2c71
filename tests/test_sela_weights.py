"""What the original code of SeLa published and saves: every form is read, names go both ways, others are refused."""
import functools
import hashlib
import http.server
import pickle
import threading
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from nmc_workbench.core.errors import InputError
from nmc_workbench.methods.sela.weights import as_original, load_pretrained, original_weights, to_torchvision
from nmc_workbench.core.seeds import initialised
from nmc_workbench.nets.backbones import backbone
from nmc_workbench.nets.heads import HeadsNet

K, H, N = 6, 3, 20
LABELS = np.random.default_rng(0).integers(0, K, (H, N))


def build(kind='resnetv1(depth=18)', n_heads=H, channels=3):
    return initialised(lambda: HeadsNet(*backbone(kind, channels), K, n_heads), 0).eval()


def light(kind, n_heads):
    "The state dict of a network of the original code, tensors of one stored number each: their files are small."
    with torch.device('meta'): state = as_original(HeadsNet(*backbone(kind), K, n_heads))
    return {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in state.items()}


theirs = light('resnetv1(depth=18)', H)


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


def refused(match, *args, **kwargs):
    with pytest.raises(InputError, match=match) as e: load_pretrained(*args, **kwargs)
    assert '\n' not in str(e.value)
    return str(e.value)


@pytest.fixture(scope='module')
def net(): return build()


@pytest.fixture(scope='module')
def x(): return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_names_there_and_back(net):
    theirs = as_original(net)
    assert [k for k in theirs if 'top' in k] == [f'top_layer{i}.{w}' for i in range(H) for w in ('weight', 'bias')]
    assert all(v.equal(net.state_dict()[k]) for k, v in original_weights(theirs).items())
    assert original_weights(net.state_dict()).keys() == net.state_dict().keys()
    one = as_original(build(n_heads=1))
    assert {'top_layer.0.weight', 'top_layer.0.bias'} < set(one)
    with torch.device('meta'): alexnet = as_original(build('alexnet', 1))
    assert {'features.0.weight', 'classifier.1.weight', 'top_layer.weight', 'top_layer.bias'} < set(alexnet)


@pytest.mark.parametrize('theirs, ours', [
    ('module.features.0.weight', 'backbone.features.0.weight'),
    ('features.module.4.0.conv1.weight', 'backbone.features.4.0.conv1.weight'),
    ('module.classifier.module.1.bias', 'backbone.classifier.1.bias'),
    ('top_layer.bias', 'heads.0.bias'),
    ('top_layer.0.weight', 'heads.0.weight'),
    ('module.top_layer.0.weight', 'heads.0.weight'),
    ('top_layer0.weight', 'heads.0.weight'),
    ('top_layer12.bias', 'heads.12.bias'),
    ('top_layer3.0.bias', 'heads.3.bias'),
    ('module.top_layer.module.0.bias', 'heads.0.bias'),
    ('something.else', 'something.else')])
def test_each_kind_of_key(theirs, ours):
    assert list(original_weights({theirs: torch.zeros(1)})) == [ours]


@pytest.mark.parametrize('depth', [18, 50])
def test_to_torchvision(depth, x):
    net = build(f'resnetv1(depth={depth})')
    reference = torchvision.models.get_model(f'resnet{depth}', weights=None, num_classes=K).eval()
    for state in (as_original(net), {f'module.{k}': v for k, v in as_original(net).items()}, net.state_dict()):
        reference.load_state_dict(to_torchvision(state))
        with torch.no_grad(): torch.testing.assert_close(reference(x), net(x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('key, depth, as_array', [('L', 18, torch.from_numpy), ('labels', 50, np.asarray)])
def test_released_form(tmp_path, x, key, depth, as_array):
    "torchvision's ResNet with the head of the right size, beside the labels; of several heads only the first is there."
    net = build(f'resnetv1(depth={depth})')
    file = saved(tmp_path / 'resnet-pp.pth', {'state_dict': to_torchvision(as_original(net)), key: as_array(LABELS)})
    found = load_pretrained(file, n_clusters=K)
    assert type(found.network) is torchvision.models.ResNet and not found.network.training
    assert (found.kind, found.source, found.rotation) == (f'torchvision:resnet{depth}', str(file), None)
    assert found.labels.dtype == np.int64 and np.array_equal(found.labels, LABELS)
    with torch.no_grad(): torch.testing.assert_close(found.network(x), net(x)[0], rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_training(tmp_path, x):
    "Optimiser included."
    net = build()
    sgd = torch.optim.SGD(net.parameters(), .1, momentum=.9)
    net(x).sum().backward()
    sgd.step()
    state = {f'module.{k}': v for k, v in as_original(net).items()}
    content = dict(epoch=7, arch='resnetv1', state_dict=state, optimizer=sgd.state_dict(), L=torch.from_numpy(LABELS))
    found = load_pretrained(saved(tmp_path / 'checkpoint006.pth', content))
    assert found.kind == 'resnetv1(depth=18)' and len(found.network.heads) == H and np.array_equal(found.labels, LABELS)
    with torch.no_grad(): assert torch.equal(found.network(x), net(x))


@pytest.mark.parametrize('content, labelled', [
    (theirs, False),
    ({f'module.{k}': v for k, v in theirs.items()}, False),
    (dict(epoch=2, metrics=[], model=theirs, optimizer={}), False),
    (dict(net=theirs, opt={}, acc=np.float64(.7), epoch=3, L=torch.from_numpy(LABELS)), True),
    (dict(state_dict=theirs, L=LABELS.tolist()), True),
    (dict(state_dict=theirs, labels=LABELS.astype('i4')), True)])
def test_every_form(tmp_path, content, labelled):
    found = load_pretrained(saved(tmp_path / 'some.pth', content))
    assert found.kind == 'resnetv1(depth=18)' and len(found.network.heads) == H
    assert not any(p.any() for p in found.network.parameters())
    assert np.array_equal(found.labels, LABELS) if labelled else found.labels is None


def test_one_dimensional_labels_and_old_formats(tmp_path, net, x):
    one = build(n_heads=1)
    content = dict(net=as_original(one), L=torch.from_numpy(LABELS[0]))
    found = load_pretrained(saved(tmp_path / 'one.t7', content, _use_new_zipfile_serialization=False))
    assert found.labels.shape == (1, N) and len(found.network.heads) == 1
    with torch.no_grad(): assert torch.equal(found.network(x), one(x))
    # as torch 0.4.0 saved
    old = {k: v for k, v in as_original(one).items() if not k.endswith('num_batches_tracked')}
    with torch.no_grad(): assert torch.equal(load_pretrained(saved(tmp_path / 'old.pth', old)).network(x), one(x))


@pytest.mark.parametrize('kind, n_heads', [
    ("alexnet(width='big')", 1),
    ("alexnet(width='small')", 2),
    ('resnetv1(depth=50)', 1),
    ('resnetv2(expansion=1)', 3),
    ('resnetv2(expansion=2)', 1)])
def test_the_architecture_is_found(tmp_path, kind, n_heads):
    found = load_pretrained(saved(tmp_path / 'some.pth', light(kind, n_heads)))
    assert found.kind == kind and len(found.network.heads) == n_heads and found.labels is None
    assert backbone(found.kind)[1] == found.network.heads[0].in_features


def test_channels_are_found(tmp_path):
    found = load_pretrained(saved(tmp_path / 'grey.pth', as_original(build(channels=1))))
    assert found.network(torch.rand(2, 1, 64, 64)).shape == (H, 2, K)


def test_the_head_for_rotations_is_kept_apart(tmp_path, net, x):
    turn = nn.Linear(512, 4)
    theirs = {**as_original(net), f'top_layer{H}.weight': turn.weight.data, f'top_layer{H}.bias': turn.bias.data}
    found = load_pretrained(saved(tmp_path / 'wRot.pth', theirs))
    with torch.no_grad():
        assert torch.equal(found.network(x), net(x))
        assert torch.equal(found.rotation(found.network.features(x)), turn(net.features(x)))


class Evil:
    def __reduce__(self): return print, ('this must not be printed',)


def test_files_that_are_none(tmp_path, net, capsys):
    whole = saved(tmp_path / 'whole.pth', theirs)
    refused(r'model_final.pth.tar can only be loaded by running code \(nmc_workbench.nets.heads.HeadsNet\); save the',
            saved(tmp_path / 'model_final.pth.tar', net))
    refused('can only be loaded by running code', saved(tmp_path / 'evil.pth', {'state_dict': theirs, 'L': Evil()}))
    (tmp_path / 'plain.pth').write_bytes(pickle.dumps(Evil(), 2))
    refused('can only be loaded by running code|damaged', tmp_path / 'plain.pth')
    assert 'must not' not in capsys.readouterr().out
    data = whole.read_bytes()
    damaged = dict(cut=data[:-100], half=data[:len(data) // 2], empty=b'', text=b'<html>not found</html>',
                   zeros=bytes(1000))
    for name, content in damaged.items():
        (tmp_path / f'{name}.pth').write_bytes(content)
        refused(f'{name}.pth is damaged or no file of weights .*put a whole copy there', tmp_path / f'{name}.pth')
    with zipfile.ZipFile(tmp_path / 'pretrained.zip', 'w') as z: z.writestr('resnet-10x3k.pth', 'x')
    refused('is an archive of resnet-10x3k.pth; unpack it', tmp_path / 'pretrained.zip')
    refused('no file .*nothing.pth; give a file of weights', tmp_path / 'nothing.pth')
    refused('no file', tmp_path)


def test_a_flipped_byte_is_found(tmp_path):
    "With a checksum, wherever the byte lies."
    file = saved(tmp_path / 'some.pth', theirs)
    data = bytearray(file.read_bytes())
    right = hashlib.sha256(data).hexdigest()
    load_pretrained(file, sha256=right.upper())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    refused(f'has the sha256 .*expected {right}', file, sha256=right)


def test_content_that_does_not_fit(tmp_path):
    file = tmp_path / 'some.pth'
    def with_labels(labels): return saved(file, dict(state_dict=theirs, L=labels))
    def without(*keys): return saved(file, {k: v for k, v in theirs.items() if k not in keys})
    refused('does not fit this HeadsNet: misses: backbone.features.4.0.conv1.weight',
            without('features.4.0.conv1.weight'))
    refused('misses: heads.1.bias', without('top_layer1.bias'))
    refused('misses: heads.1.bias, heads.1.weight; has unknown: heads.2.bias, heads.2.weight',
            without('top_layer1.weight', 'top_layer1.bias'))
    refused(r'has no head \(top_layer\)', without(*(k for k in theirs if 'top' in k)))
    refused('is of no network of SeLa: it has backbone.features.1.weight', without('features.0.weight'))
    refused('has unknown: extra', saved(file, {**theirs, 'extra': torch.zeros(2)}))
    refused('heads of 6, 9, 6 clusters', saved(file, {**theirs, 'top_layer1.weight': torch.zeros(9, 512)}))
    refused('two entries for heads.0.weight, one of them top_layer.weight',
            saved(file, {**theirs, 'top_layer.weight': torch.zeros(6, 512)}))
    refused('holds no weights by name but epoch, state_dict', saved(file, dict(epoch=1, state_dict='gone')))
    refused('holds no weights by name but nothing', saved(file, {}))
    refused('damaged or no file of weights .it holds a list', saved(file, [torch.zeros(2)]))
    refused('has 6 clusters, n_clusters=7 was asked for', saved(file, theirs), n_clusters=7)
    refused('does not fit this HeadsNet', file, kind='resnetv2')
    refused('unknown backbone', file, kind='resnetv3')
    refused("unknown network 'resnet34'.* known: resnet18, resnet50", file, kind='torchvision:resnet34')
    refused(r'has no head \(fc.weight\)', file, kind='torchvision:resnet18')
    deep, none = torch.zeros(2, 3, 4, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    for labels in (deep, none, torch.zeros(3, 4), [[1, 2], [3]]):
        refused('expected .heads, images. whole numbers', with_labels(labels))
    refused('labels from -1 to 5 for 6 clusters; expected 0 to 5', with_labels(torch.tensor([[-1, 5]])))
    refused('labels from 0 to 6 for 6 clusters', with_labels(torch.tensor([[0, 6]])))


@pytest.mark.parametrize('call, message', [
    (lambda: to_torchvision(light('resnetv2', 1)), r'is of resnetv2\(expansion=1\); expected a ResNet v1'),
    (lambda: to_torchvision(light('alexnet', 1)), 'is of alexnet'),
    (lambda: to_torchvision({'a.weight': torch.zeros(1)}), 'no network of SeLa: it has a.weight'),
    (lambda: as_original(HeadsNet(*backbone('smallconv'), 3)), 'has no Sequential'),
    (lambda: as_original(torchvision.models.resnet18()), 'has no ResNet;')])
def test_bad_input_is_one_line(call, message):
    with pytest.raises(InputError, match=message) as e: call()
    assert '\n' not in str(e.value)


@pytest.fixture
def site(tmp_path):
    "A folder, and the address of a local server of its files."
    folder = tmp_path / 'site'
    folder.mkdir()
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()
    server.server_close()


def test_from_an_address(tmp_path, site):
    served, url = site
    cache = tmp_path / 'cache'
    digest = hashlib.sha256(saved(served / 'some.pth', theirs).read_bytes()).hexdigest()
    message = refused(f'{url}some.pth sent a file with the sha256 {digest}, expected 0+; or download it by other means',
                      f'{url}some.pth', sha256='0' * 64, folder=cache)
    assert 'digits' not in message and not list(cache.iterdir())                         # nothing under any name
    found = load_pretrained(f'{url}some.pth', sha256=digest, folder=cache)
    assert len(found.network.heads) == H and not any(p.any() for p in found.network.parameters())
    (file,) = cache.iterdir()
    assert found.source == str(file) and file.name.endswith('-some.pth')
    (served / 'some.pth').unlink()
    load_pretrained(f'{url}some.pth', sha256=digest, folder=cache)                       # from the folder
    (served / 'sub').mkdir()
    saved(served / 'sub/some.pth', light('resnetv1(depth=18)', 1))
    other = load_pretrained(f'{url}sub/some.pth', folder=cache)             # of the same name, but not the same file
    assert len(other.network.heads) == 1
    file.write_bytes(file.read_bytes()[:-1])
    refused('has the sha256 .*delete it and run again', f'{url}some.pth', sha256=digest, folder=cache)
    message = refused('cannot download .*nothing.pth.*404.*; or download it by other means and give that file',
                      f'{url}nothing.pth', folder=cache)
    assert 'digits' not in message
