"""Laws of the recipes under examples/recipes: one for every preset, each the tiny ones run."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vqtok
from vqtok.presets import PRESETS
from vqtok.training import read_recipe

RECIPES = sorted((Path(__file__).parents[2] / "examples/recipes").glob("*.toml"))
PHOTO = Path(__file__).parents[2] / "examples/photo.jpg"


def test_every_preset_has_a_recipe_of_its_name_and_there_are_no_others():
    named = {path.stem: read_recipe(path).model for path in RECIPES}
    assert {model.preset for model in named.values() if model.preset} == {*PRESETS}
    assert all(name == model.preset for name, model in named.items() if model.preset)
    # A recipe that goes on from another's model is named after that.
    assert all(name.startswith(f"{model.start.split('/')[0]}-") for name, model in named.items() if model.start)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_in_its_first_line_what_it_is(path):
    assert path.read_text().startswith("# ")
    recipe = read_recipe(path)
    assert recipe.discriminator is None or recipe.discriminator.start < recipe.steps


@pytest.mark.parametrize("path", [x for x in RECIPES if x.stem.endswith("-tiny")], ids=lambda path: path.stem)
def test_a_tiny_recipe_runs_through_all_its_stages(path, tmp_path):
    (tmp_path / "photos").mkdir()
    photo = Image.open(PHOTO)
    for i in range(3):
        photo.crop((60 * i, 40 * i, 60 * i + 180, 40 * i + 170)).save(tmp_path / "photos" / f"{i}.png")
    recipe = read_recipe(path)
    changes = [f"stages.{i}.steps=3" for i in range(len(recipe.stages))]
    changes += [f"stages.{i}.images=2" for i in range(len(recipe.stages))]
    changes += [f'data.train=[{{path="{tmp_path}/photos"}}]', f'data.validate_on=["{tmp_path}/photos"]']
    changes += ["data.workers=0", "data.validate_limit=2", "log_every=1", "validate_every=3", "optimizer.warmup=0"]
    if recipe.discriminator is not None:
        changes += ["discriminator.start=4", "discriminator.warmup=1"]
    model = vqtok.train(path, tmp_path / "run", changes=changes)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = 3 * len(recipe.stages)
    assert [row["step"] for row in rows if row["event"] == "train"] == [*range(1, steps + 1)]
    assert all(np.isfinite(row["total"]) for row in rows if row["event"] == "train")
    tokenizer = vqtok.load(model)
    tokens = tokenizer.tokenize(np.asarray(photo))
    assert tokens.vocab_size == vqtok.build(recipe.model.preset).vocab_size
    assert tokenizer.detokenize(tokens)[0].size[0] in (photo.width, tokenizer.spec.size)
