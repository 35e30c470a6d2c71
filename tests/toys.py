"What the tests of pictures draw: a small clustering, a run's metrics, a name full of markup."
import io

import numpy as np
import torch
from PIL import Image

HOSTILE = '<script>alert("x")</script> $\\frac{1}{$ \'q\' & %{y}'
PLOTLY = 'application/vnd.plotly.v1+json'

def clustering():
    "120 noisy images of 4 classes, 4 clusters that mostly agree, 6 samples of noise."
    g = np.random.default_rng(0)
    y = np.arange(120) % 4
    labels = np.where(g.random(120) < .1, (y + 1) % 4, y)
    labels[:6] = -1
    z = (np.eye(4)[y] + .2 * g.normal(size=(120, 4))).astype('f4')
    pixels = torch.from_numpy(g.integers(0, 256, (120, 3, 16, 16), dtype=np.uint8))
    return dict(y=y, labels=labels, z=z, pixels=pixels)

def metrics(**more):
    "The rows of a run of two stages."
    epochs = [('first', e) for e in range(5)] + [('second', e) for e in range(3)]
    return [dict(stage=stage, epoch=e, loss=1 / (e + 1), **more) for stage, e in epochs]

def png(picture): return Image.open(io.BytesIO(picture.png()))
