"Encoders: features equal to those of each library's own pipeline, weights from files, and what is refused."
import json
import os
import sys

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from nmc_workbench.core.errors import InputError
from nmc_workbench.core.seeds import initialised
from nmc_workbench.nets import encoders
from nmc_workbench.nets.backbones import backbone
from nmc_workbench.nets.encoders import RANDOM, Encoder, Preprocessing, encoder, is_encoder_name, kinds, read_weights

SIZES = (32, 32), (50, 70), (300, 200)


def pictures(size, n=3):
    "Pillow images with edges and noise, and the same as bytes (n, 3, H, W)."
    rng = np.random.default_rng(size[0])
    coarse = rng.integers(0, 256, (n, size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    found = [Image.fromarray(c).resize(size[::-1], Image.Resampling.NEAREST) for c in coarse]
    noisy = [np.clip(np.asarray(p).astype(int) + rng.integers(-20, 21, (*size, 3)), 0, 255) for p in found]
    x = np.stack(noisy).astype(np.uint8)
    return [Image.fromarray(a) for a in x], torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def assert_same(found, wanted):
    "Equal to 1e-5, of features that do differ between images."
    assert found.shape == wanted.shape and wanted.std(0).max() > 1e-3
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


# --- torchvision


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('name, layer', [('resnet18', 'fc'), ('densenet121', 'classifier')])
def test_torchvision_as_its_own_pipeline(name, layer, size, tmp_path):
    net = initialised(lambda: torchvision.models.get_model(name), 0)
    torch.save(net.state_dict(), tmp_path / 'weights.pth')
    seen, x = pictures(size)
    ours = encoder(f'torchvision:{name}', tmp_path / 'weights.pth')
    transform = torchvision.models.get_model_weights(name).IMAGENET1K_V1.transforms()
    setattr(net, layer, nn.Identity())
    with torch.no_grad(): wanted = net.eval()(torch.stack([transform(p) for p in seen]))
    assert_same(ours(ours.prepare(x)), wanted)
    assert_same(ours(ours.scaled(ours.pixels(seen))), wanted)


def test_grey_is_expanded_and_another_size_keeps_the_margin():
    net = encoder('torchvision:resnet18', RANDOM, 64)
    assert net.size == (64, 64) and 'size=73' in repr(net.preprocessing)       # 256 of 224
    grey = torch.randint(0, 256, (2, 1, 40, 40), dtype=torch.uint8)
    assert torch.equal(net.prepare(grey), net.prepare(grey.expand(-1, 3, -1, -1)))


def test_old_files_lack_the_count_of_batches(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    torch.save({k: v for k, v in state.items() if 'num_batches' not in k}, tmp_path / 'w.pth')
    assert encoder('torchvision:resnet18', tmp_path / 'w.pth', 32).net.conv1.weight.equal(state['conv1.weight'])


def test_googlenet_reads_its_images_as_its_weights_expect():
    assert encoder('torchvision:googlenet', RANDOM, 64).net.transform_input


# --- timm


timm_models = pytest.mark.parametrize('name', ['test_vit', 'test_efficientnet', 'test_resnet'])


def timm_weights(name, path, **options):
    "A timm model with random weights, which are written to a file as well."
    timm = pytest.importorskip('timm')
    from safetensors.torch import save_file
    net = initialised(lambda: timm.create_model(name, **options), 0)
    save_file(net.state_dict(), path)
    return net


@pytest.mark.parametrize('size', SIZES)
@timm_models
def test_timm_as_its_own_pipeline(name, size, tmp_path):
    net = timm_weights(name, tmp_path / 'model.safetensors').eval()
    import timm
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=net))
    seen, x = pictures(size)
    with torch.no_grad():
        z = net.forward_features(torch.stack([transform(p) for p in seen]))
        wanted = net.forward_head(z, pre_logits=True)
    for ours in (encoder(f'timm:{name}', tmp_path / 'model.safetensors'),
                 encoder(f'file:{tmp_path}/model.safetensors?timm:{name}')):
        assert_same(ours(ours.prepare(x)), wanted)
    net.reset_classifier(0)
    assert_same(encoder(net)(encoder(net).prepare(x)), wanted)          # the module itself knows its preprocessing


@pytest.mark.parametrize('classes', [0, 7])
def test_timm_weights_of_another_number_of_classes(classes, tmp_path):
    net = timm_weights('test_resnet', tmp_path / 'w.safetensors', num_classes=classes).eval()
    ours = encoder('timm:test_resnet', tmp_path / 'w.safetensors')
    x = ours.prepare(pictures((32, 32))[1])
    with torch.no_grad(): wanted = net.forward_head(net.forward_features(x), pre_logits=True)
    torch.testing.assert_close(ours(x), wanted)


def test_timm_at_another_size(tmp_path):
    timm_weights('test_vit', tmp_path / 'w.safetensors')
    ours = encoder('timm:test_vit', tmp_path / 'w.safetensors', size=96)
    assert ours.size == (96, 96) and ours(ours.prepare(pictures((40, 40))[1])).shape == (3, ours.dim)


@timm_models
def test_timm_weights_that_do_not_fit_are_refused(name, tmp_path):
    "A layer that is missing would keep its random weights."
    from safetensors.torch import load_file, save_file
    timm_weights(name, tmp_path / 'w.safetensors')
    state = load_file(tmp_path / 'w.safetensors')
    del state[next(k for k in state if k.endswith('.weight') and ('blocks' in k or 'layer1' in k))]
    save_file(state, tmp_path / 'lost.safetensors')
    with pytest.raises(InputError, match=f'other weights than those of timm:{name}'):
        encoder(f'timm:{name}', tmp_path / 'lost.safetensors')


# --- transformers


def hf_model(kind, folder):
    "A small model of transformers with random weights, and its image processor, saved into a folder."
    t = pytest.importorskip('transformers')
    vision = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=56,
                  patch_size=14)
    joint = dict(text_config=dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                                  vocab_size=99), vision_config=vision)
    make = dict(
        dinov2=lambda: (t.Dinov2Model(t.Dinov2Config(**{**vision, 'intermediate_size': None})), 'BitImageProcessor'),
        vit=lambda: (t.ViTModel(t.ViTConfig(**vision)), 'ViTImageProcessor'),
        clip=lambda: (t.CLIPModel(t.CLIPConfig(**joint, projection_dim=24)), 'CLIPImageProcessor'),
        siglip=lambda: (t.SiglipModel(t.SiglipConfig(**joint)), 'SiglipImageProcessor'),
        resnet=lambda: (t.ResNetModel(t.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])),
                        'ConvNextImageProcessor'))
    model, processor = initialised(make[kind], 0)
    model.eval().save_pretrained(folder)
    values = dict(image_processor_type=processor, do_resize=True, do_rescale=True, do_normalize=True, resample=3,
                  rescale_factor=1 / 255, image_mean=[.48, .45, .4], image_std=[.26, .25, .27])
    crops = kind in ('dinov2', 'clip')
    values |= dict(size=dict(shortest_edge=64), crop_size=dict(height=56, width=56)) if crops else {}
    values |= dict(do_center_crop=True) if crops else dict(size=dict(height=56, width=56))
    if kind == 'resnet': values |= dict(size=dict(shortest_edge=56), crop_pct=.875)
    (folder / 'preprocessor_config.json').write_text(json.dumps(values))
    return model


hf_models = pytest.mark.parametrize('kind', ['dinov2', 'vit', 'clip', 'siglip', 'resnet'])


def hf_pipeline(model, folder, seen):
    "Features as transformers gives them."
    import transformers
    inputs = transformers.AutoImageProcessor.from_pretrained(folder)(images=seen, return_tensors='pt')
    call = getattr(model, 'get_image_features', model)
    with torch.no_grad(): found = call(**inputs)
    return (found if isinstance(found, torch.Tensor) else found.pooler_output).flatten(1)


@pytest.mark.parametrize('size', SIZES)
@hf_models
def test_transformers_as_its_own_pipeline(kind, size, tmp_path):
    model = hf_model(kind, tmp_path)
    seen, x = pictures(size)
    ours = encoder(f'hf:{tmp_path}')
    wanted = hf_pipeline(model, tmp_path, seen)
    assert_same(ours(ours.prepare(x)), wanted)
    assert_same(ours(ours.scaled(ours.pixels(seen))), wanted)
    assert not any('text' in k for k in ours.net.state_dict())


def test_a_pooler_without_trained_weights_is_not_used(tmp_path):
    from safetensors.torch import load_file, save_file
    hf_model('vit', tmp_path)
    state = load_file(tmp_path / 'model.safetensors')
    kept = {k: v for k, v in state.items() if not k.startswith('pooler')}
    assert len(kept) < len(state)
    save_file(kept, tmp_path / 'model.safetensors', metadata=dict(format='pt'))
    import transformers
    ours, model = encoder(f'hf:{tmp_path}'), transformers.AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    x = ours.prepare(pictures((32, 32))[1])
    with torch.no_grad(): torch.testing.assert_close(ours(x), model.eval()(pixel_values=x).last_hidden_state[:, 0])
    kept.pop(next(k for k in kept if 'attention' in k))
    save_file(kept, tmp_path / 'model.safetensors', metadata=dict(format='pt'))
    with pytest.raises(InputError, match='lacks 1 of its weights'): encoder(f'hf:{tmp_path}')


@pytest.mark.parametrize('kind', ['dinov2', 'clip', 'vit'])
def test_transformers_at_another_size(kind, tmp_path):
    hf_model(kind, tmp_path)
    ours = encoder(f'hf:{tmp_path}', size=84)
    assert ours.size == (84, 84) and ours(ours.prepare(pictures((40, 50))[1])).shape == (3, ours.dim)


def test_a_model_of_text_is_refused(tmp_path):
    t = pytest.importorskip('transformers')
    t.BertModel(t.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                             vocab_size=50)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match='is a bert model, which takes no images'): encoder(f'hf:{tmp_path}')


@pytest.mark.parametrize('lost', ['config.json', 'preprocessor_config.json', 'model.safetensors'])
def test_a_folder_that_lacks_a_file(lost, tmp_path):
    hf_model('vit', tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(InputError, match=rf'cannot read hf:.*{lost}') as e: encoder(f'hf:{tmp_path}')
    assert '\n' not in str(e.value)


# --- files and modules


def test_torchscript(tmp_path):
    net = initialised(lambda: backbone('torchvision:resnet18')[0], 0).eval()
    path = tmp_path / 'net.pt'
    torch.jit.trace(net, torch.zeros(1, 3, 32, 32)).save(path)
    ours = encoder(f'file:{path}', size=32)
    x = ours.prepare(pictures((32, 32))[1])
    with torch.no_grad(): torch.testing.assert_close(ours(x), net(x))
    assert len(ours.digest()) == 32
    with pytest.raises(InputError, match='does not say what images it takes'): encoder(f'file:{path}')


class Harmful:
    def __init__(self, folder): self.folder = folder
    def __reduce__(self): return os.mkdir, (str(self.folder / 'it ran'),)


@pytest.mark.parametrize('inner', [False, True])
def test_a_pickle_is_refused_and_not_run(inner, tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(dict(model=Harmful(tmp_path)) if inner else Harmful(tmp_path), path)
    for call in (lambda: read_weights(path), lambda: encoder(f'file:{path}?torchvision:resnet18')):
        with pytest.raises(InputError, match='could run code, so it is not read'): call()
    assert not (tmp_path / 'it ran').exists()


def test_a_module_of_ones_own():
    net = backbone('smallconv')[0]
    ours = encoder(net, size=8)
    assert ours.channels == 1 and ours.dim == 64 and not any(p.requires_grad for p in ours.parameters())
    assert ours.train() is ours and not net.training
    assert encoder(ours) is ours
    own = encoder(net, preprocessing=Preprocessing.centred(12, mean=(.5,), std=(.5,)))
    assert own.size == (12, 12) and own.prepare(torch.zeros(1, 1, 20, 20, dtype=torch.uint8)).eq(-1).all()


def test_the_digest_follows_the_weights():
    a, b = (initialised(lambda: encoder('torchvision:resnet18', RANDOM, 32), s) for s in (0, 1))
    again = initialised(lambda: encoder('torchvision:resnet18', RANDOM, 32), 0)
    assert a.digest() == again.digest() != b.digest()


def test_a_kind_can_be_added(monkeypatch):
    monkeypatch.setattr(encoders, '_KINDS', dict(encoders._KINDS))
    encoders.register_kind('mine', lambda what, weights, size: encoder(backbone(what)[0], size=8), 'mine:<backbone>')
    assert encoder('mine:smallconv').dim == 64 and is_encoder_name('mine:x') and 'mine:<backbone>' in kinds()


def test_the_network_of_a_run(tiny_run):
    from nmc_workbench.data import load
    from nmc_workbench.methods.base import open_run
    folder = tiny_run('nmce')
    images = load('digits', limit=20)
    ours = encoder(f'run:{folder}')
    wanted = open_run(folder, 'cpu').transform(images)
    np.testing.assert_allclose(ours(ours.prepare(images.pixels)).numpy(), wanted, atol=1e-5)
    with pytest.raises(InputError, match='takes images of 1 x 8 x 8; these are 3 x 9 x 9'):
        ours.pixels(torch.zeros(1, 3, 9, 9, dtype=torch.uint8))
    with pytest.raises(InputError, match='leave weights and size out'): encoder(f'run:{folder}', size=32)


@timm_models
def test_the_encoder_of_nmc(name, tmp_path):
    "NMC on any encoder: its weak view is the encoder's own preprocessing, and the saved model holds the weights."
    from nmc_workbench.methods import NMC
    weights = tmp_path / 'w.safetensors'
    timm_weights(name, weights)
    x = pictures((32, 32), 24)[1]
    model = NMC(encoder=f'file:{weights}?timm:{name}', input_size=64, epochs=2, batch_size=8, device='cpu',
                run_dir=str(tmp_path / 'run')).fit(x)
    ours = encoder(f'timm:{name}', weights, 64)
    torch.testing.assert_close(model.network_.encoder(model.network_.encoder.augment.plain(x)), ours(ours.prepare(x)))
    weights.unlink()
    assert (NMC.load(tmp_path / 'run', 'cpu').predict(x) == model.labels_).all()


# --- bad input


class Tuple(nn.Module):
    def forward(self, x): return x, x


@pytest.mark.parametrize('given, message', [
    (('resnet18',), "encoder='resnet18'; expected torchvision:<model>.*run:<folder>.*mean 'torchvision:resnet18'"),
    (('torchvison:resnet18',), "did you mean 'torchvision:resnet18'"),
    (('him:resnet18',), "encoder='him:resnet18'; expected torchvision"),
    (('torchvision:',), "encoder='torchvision:'; expected"),
    (('torchvision:resnet19',), "did you mean 'resnet18'"),
    (('features',), 'takes an array of features'),
    ((None,), 'encoder=None; expected torchvision:<model>'),
    ((nn.Linear(4, 2), None, 8), 'Linear takes no images of 3 x 8 x 8'),
    ((nn.Embedding(4, 2), None, 8), 'Embedding takes no images'),
    ((Tuple(), None, 8), 'Tuple returns a tuple; expected a tensor of features'),
    ((nn.Flatten(),), 'Flatten does not say what images it takes; give size='),
    ((nn.Flatten(), 'weights.pt', 8), 'with a module; load them into it'),
    (('torchvision:resnet18', 'nowhere.pth'), 'there is no file nowhere.pth'),
    (('file:nowhere.pth?torchvision:resnet18',), 'there is no file nowhere.pth'),
    (('file:nowhere.pth',), 'there is no file nowhere.pth'),
    (('torchvision:vit_b_16', RANDOM, 96), 'takes no images of 3 x 96 x 96'),
    (('torchvision:resnet18', RANDOM, 2), 'size=2'),
])
def test_bad_input(given, message):
    with pytest.raises(InputError, match=message) as e: encoder(*given)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('content, message', [
    (b'', 'is damaged or no file of weights'), (b'PK\x03\x04 cut off', 'is damaged or no file of weights'),
    (b'\x80\x04\x95', 'could run code|is damaged')])
def test_damaged_weights(content, message, tmp_path):
    (tmp_path / 'w.pth').write_bytes(content)
    with pytest.raises(InputError, match=message): encoder('torchvision:resnet18', tmp_path / 'w.pth')
    (tmp_path / 'w.safetensors').write_bytes(content)
    pytest.importorskip('safetensors')
    with pytest.raises(InputError, match='no safetensors file'):
        encoder('torchvision:resnet18', tmp_path / 'w.safetensors')


def test_weights_without_their_network(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / 'w.pth')
    with pytest.raises(InputError, match=r'has weights, but no network; name it: file:.*\?torchvision:resnet18'):
        encoder(f'file:{tmp_path}/w.pth')
    with pytest.raises(InputError, match='does not fit torchvision:resnet34'):
        encoder(f'file:{tmp_path}/w.pth?torchvision:resnet34')


@pytest.mark.parametrize('name, library', [('timm:test_vit', 'timm'), ('hf:facebook/dinov2-small', 'transformers')])
def test_a_missing_extra(name, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"{library} is not installed; pip install 'nmc_workbench\[encoders\]'"):
        encoder(name)


@pytest.mark.parametrize('name, message', [
    ('timm:tf_efficientnet_lite0', 'put model.safetensors from https://huggingface.co/timm/tf_efficientnet_lite0.in1k'),
    ('hf:nobody/no-such-model', 'download config.json, preprocessor_config.json and model.safetensors from https://'),
])
def test_weights_that_are_not_to_be_had(name, message, monkeypatch):
    hub = pytest.importorskip('huggingface_hub')
    def no_network(*args, **kwargs): raise OSError('Name or service not known')
    monkeypatch.setattr(hub, 'model_info', no_network)
    monkeypatch.setattr(hub, 'try_to_load_from_cache', lambda *a: None)
    with pytest.raises(InputError, match=message) as e: encoder(name)
    assert 'Name or service not known' in str(e.value) and '\n' not in str(e.value)


def test_unknown_timm_models():
    pytest.importorskip('timm')
    with pytest.raises(InputError, match='unknown timm model .*did you mean resnet18'): encoder('timm:resnet18x')
    with pytest.raises(InputError, match='timm publishes no weights for resnet50c|are not to be had'):
        encoder('timm:resnet50c')


@pytest.mark.parametrize('images', [torch.zeros(2, 3, 8, 8), torch.zeros(2, 2, 8, 8, dtype=torch.uint8),
                                    torch.zeros(3, 8, 8, dtype=torch.uint8)])
def test_images_that_are_no_bytes(images):
    with pytest.raises(InputError, match='takes bytes'): encoder(backbone('smallconv')[0], size=8).prepare(images)


def test_an_encoder_is_one():
    assert isinstance(encoder(nn.Flatten(), size=4 + 4), Encoder)
