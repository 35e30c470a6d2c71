"A folder of photographs as people have them: sizes, modes and names of all kinds, folders that are no classes."
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = 'red', 'blue box', 'Grün', 'yellow (2)', 'white'
NAMES = 'IMG_{:04}.JPG', 'holiday {:03}.png', 'Foto ({}).jpeg', 'scan-ü{:02}.gif', 'DSC{:05} copy.tif', '{}.final.webp'
MODES = 'RGB', 'RGB', 'RGB', 'RGB', 'RGBA', 'P', 'CMYK', 'L'


def picture(pixels, g):
    "One image (C, H, W) enlarged to a size and turned into a mode drawn at random, and a name that suits the mode."
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).convert('RGB')
    side = int(g.integers(96, 280))
    image = image.resize((side, int(side * g.uniform(.85, 1.18))), Image.Resampling.BICUBIC)
    mode = MODES[g.integers(len(MODES))]
    fits = dict(RGBA=(1, 4, 5), P=(1, 3), CMYK=(0, 2, 4), L=(0, 1, 2, 4), RGB=(0, 1, 2, 4, 5))[mode]
    return image.convert(mode), NAMES[fits[g.integers(len(fits))]]


def write_photographs(
    pixels,     # (N, C, H, W) bytes
    labels,     # (N,), which nothing in the folder tells
    folder,     # made here
    seed=0,
):
    "Write the folder, with things in it that are no images; the label of every file: path in the folder -> label."
    g, folder, truth = np.random.default_rng(seed), Path(folder), {}
    for i, at in enumerate(g.permutation(len(pixels))):
        image, name = picture(pixels[at], g)
        path = Path(COLOURS[g.integers(len(COLOURS))]) / name.format(i)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / path, **dict(lossless=True) if path.suffix == '.webp' else {})
        truth[path.as_posix()] = int(labels[at])
    (folder / 'red/notes.txt').write_text('not an image')
    (folder / '.thumbnails').mkdir()
    Image.new('RGB', (8, 8)).save(folder / '.thumbnails/small.jpg')
    return truth
