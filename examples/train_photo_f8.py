"""Train the embedded default tokenizer on folders of photographs; stop and start it as you like.

python examples/train_photo_f8.py RUN --photos corpus/train --extra corpus/extra --validate corpus/val
"""

import argparse
from pathlib import Path

import torch

import vqtok
from vqtok import images
from vqtok.training import PhotoCrops, Recipe, fit
from vqtok.training.crops import short_side

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", type=Path, help="folder of the run; an existing one is continued")
parser.add_argument("--photos", type=Path, required=True, help="folder of photographs to train on")
parser.add_argument("--extra", type=Path, help="folder of further images, a fifth of the crops")
parser.add_argument("--validate", type=Path, required=True, help="folder of photographs that choose the best weights")
parser.add_argument("--steps", type=int, default=18_000)
parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="change the preset (integers)")
options = parser.parse_args()

torch.manual_seed(0)
tokenizer = vqtok.build("photo-f8", **{k: int(v) for k, v in (x.split("=") for x in options.option)})
crops = PhotoCrops([(0.8, options.photos)] + ([(0.2, options.extra)] if options.extra else []))
files = sorted(p for p in options.validate.rglob("*") if p.is_file())
photos = [short_side(images.to_rgb(path, tokenizer.spec), 512) for path in files]
recipe = Recipe(
    steps=options.steps,
    continuous=min(400, options.steps // 4),
    validate_every=min(1000, options.steps),
    precision="bfloat16",
)
best = fit(tokenizer, crops, photos, recipe, options.run)
print(best)
