"""Laws of the training loop: what it learns, what it writes, and that it can be stopped anywhere."""

import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vqtok
from vqtok.errors import ConfigError, MismatchError, OutputError
from vqtok.evaluation.metrics import mean_psnr, psnr
from vqtok.training import Recipe
from vqtok.training import loop as loops
from vqtok.training.recipe import read_recipe, recipe_text
from vqtok.training.state import TrainingState

PHOTO = Path(__file__).parents[2] / "examples/photo.jpg"
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    image = Image.open(PHOTO)
    for i in range(4):
        image.crop((100 * i, 50 * i, 100 * i + 120, 50 * i + 100)).save(folder / f"{i}.png")
    return folder


def mapping(photos: Path, **changes) -> dict:
    """Return a recipe of seconds; keys of changes are paths with __ between."""
    recipe: Any = {
        "model": {
            "preset": "photo-f8",
            "options": {"vocab_size": 16, "channels": [8, 8, 16], "residual_blocks": [0, 0, 1]},
        },
        "data": {"train": [{"path": str(photos)}], "validate_on": [str(photos)], "workers": 0, "validate_limit": 2},
        "stages": [
            {"steps": 3, "images": 4, "size": 32, "quantize": False},
            {"steps": 9, "images": 4, "size": 32},
        ],
        "losses": {"l2": 1.0, "commitment": 0.1},
        "optimizer": {"learning_rate": 1e-3, "warmup": 2, "clip": 1.0},
        "average": 0.9,
        "log_every": 2,
        "validate_every": 3,
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        here = recipe
        for key in parents:
            here = here[int(key)] if isinstance(here, list) else here.setdefault(key, {})
        here[int(last) if isinstance(here, list) else last] = value
    return recipe


# Many codes count as dead, so the random numbers of revival matter too; a discriminator with everything it can have.
REVIVING = {
    "model__options": {"vocab_size": 16, "channels": [8, 8, 16], "residual_blocks": [0, 0, 1], "revive_below": 0.9}
}
ADVERSARIAL = {
    "discriminator": {"learning_rate": 1e-3, "start": 5, "warmup": 1, "channels": 4, "layers": 2, "adaptive": True,
                      "r1": 1.0, "r1_every": 2, "lecam": 0.1, "ramp": 3},
}  # fmt: skip


def rows(run: Path, event: str) -> list[dict]:
    """Return the rows of a kind, without the time they took."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = {"seconds", "images_per_second", "data_wait"}
    return [{k: v for k, v in row.items() if k not in timed} for row in found if row["event"] == event]


def last_state(run: Path) -> Any:
    return loops.Checkpoints(run / "checkpoints").read_last()


def assert_equal(a, b, name="state"):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), name
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), name
        for key in a:
            assert_equal(a[key], b[key], f"{name}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), name
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{name}.{i}")
    else:
        assert a == b, name


class Killed(Exception):
    """Stands for a process that ends in the middle of a step."""


@pytest.mark.parametrize("changes", [REVIVING, REVIVING | {"precision": "bfloat16"}, ADVERSARIAL],
                         ids=["float32", "bfloat16", "adversarial"])  # fmt: skip
@pytest.mark.parametrize("killed_at", [1, 4, 8, 11])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(photos, tmp_path, monkeypatch, changes, killed_at):
    recipe = mapping(photos, **changes)
    whole = vqtok.train(recipe, tmp_path / "whole")
    step = TrainingState.train_step

    def dies(state, batch):
        if state.step == killed_at:
            raise Killed
        step(state, batch)

    monkeypatch.setattr(TrainingState, "train_step", dies)
    with pytest.raises(Killed):
        vqtok.train(recipe, tmp_path / "killed")
    monkeypatch.undo()
    resumed = vqtok.train(recipe, tmp_path / "killed")
    assert vqtok.load(resumed).fingerprint == vqtok.load(whole).fingerprint
    assert_equal(last_state(tmp_path / "killed"), last_state(tmp_path / "whole"))
    for event in ("train", "validate"):
        assert rows(tmp_path / "killed", event) == rows(tmp_path / "whole", event)


def _train(recipe: dict, run: Path, strategy: loops.Strategy = "ddp") -> None:
    torch.set_num_threads(1)
    vqtok.train(recipe, run, strategy=strategy)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills_at_random_moments_change_no_bit(photos, tmp_path):
    recipe = mapping(photos, stages__1__steps=27, validate_every=6, **ADVERSARIAL)
    _train(recipe, tmp_path / "whole")
    seconds = max(row.get("seconds", 0) for row in rows_with_time(tmp_path / "whole"))
    rng = np.random.default_rng(0)
    for trial in range(20):
        run = tmp_path / f"run{trial}"
        process = SPAWN.Process(target=_train, args=(recipe, run))
        process.start()
        while not (run / "metrics.jsonl").exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, seconds))
        process.kill()
        process.join()
        _train(recipe, run)
        assert_equal(last_state(run), last_state(tmp_path / "whole"), f"trial {trial}")
        assert rows(run, "train") == rows(tmp_path / "whole", "train"), trial


def rows_with_time(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _train_in_a_rank(rank: int, port: int, recipe: dict, run: Path, strategy) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "law",
        "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "ROLE_RANK": str(rank),
    }  # fmt: skip
    _train(recipe, run, strategy)


def in_two_processes(recipe: dict, run: Path, strategy="ddp") -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        SPAWN.Process(target=_train_in_a_rank, args=(rank, port, recipe, run, strategy), daemon=True)
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(100)
    assert [rank.exitcode for rank in ranks] == [0, 0]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_learns_on_the_joined_batch(photos, tmp_path, strategy):
    recipe = mapping(photos, **REVIVING)
    _train(recipe, tmp_path / "one")
    in_two_processes(recipe, tmp_path / "two", strategy)
    for one, two in zip(rows(tmp_path / "one", "train"), rows(tmp_path / "two", "train"), strict=True):
        for name, loss in one["losses"].items():
            assert two["losses"][name] == pytest.approx(loss, abs=1e-6), (one["step"], name)
        assert two.get("usage") == one.get("usage")
    states = [last_state(tmp_path / name)["tokenizer"] for name in ("one", "two")]
    for name, x in states[0].items():  # Adam makes much of a gradient that is nearly nothing: not so the averages
        if name.startswith("quantizer"):
            torch.testing.assert_close(states[1][name], x, rtol=1e-5, atol=1e-6, msg=name)


def test_training_lowers_the_error_and_keeps_the_best_weights(photos, tmp_path):
    recipe = mapping(photos, stages__1__steps=57, validate_every=20, optimizer__learning_rate=5e-3)
    tokenizer = vqtok.load(vqtok.train(recipe, tmp_path / "run"))
    losses = [row["losses"]["l2"] for row in rows(tmp_path / "run", "train")]
    assert losses[-1] < 0.6 * losses[0]
    found = []
    for path in (photos / "0.png", photos / "2.png"):  # two of four, evenly spaced
        photo = np.asarray(Image.open(path))
        found.append(psnr(photo, np.asarray(tokenizer.detokenize(tokenizer.tokenize(photo))[0])))
    best = max(rows(tmp_path / "run", "validate"), key=lambda row: row["psnr"])
    assert np.mean(found) == pytest.approx(best["psnr"], abs=1e-9)
    assert last_state(tmp_path / "run")["best_step"] == best["step"]


def test_accumulated_gradients_are_those_of_the_whole_batch(photos, tmp_path):
    # Without a codebook that learns between the parts of a batch.
    recipe = mapping(photos, stages=[{"steps": 4, "images": 4, "size": 32, "quantize": False}], losses={"l2": 1.0})
    recipe["validate_every"] = 4
    _train(recipe, tmp_path / "whole")
    _train(recipe | {"optimizer": recipe["optimizer"] | {"accumulate": 4}}, tmp_path / "parts")
    states = [last_state(tmp_path / name)["tokenizer"] for name in ("whole", "parts")]
    for name, x in states[0].items():
        torch.testing.assert_close(states[1][name], x, rtol=1e-4, atol=1e-5, msg=name)


def test_what_is_frozen_stays_as_it_is_codebooks_too(photos, tmp_path):
    recipe = mapping(photos)
    start = vqtok.train(recipe, tmp_path / "start")
    recipe["model"] = {"start": str(start)}
    recipe["stages"] = [{"steps": 6, "images": 4, "size": 32, "frozen": ["encoder", "quantizer"]}]
    tuned = vqtok.load(vqtok.train(recipe, tmp_path / "tuned"))
    before, photo = vqtok.load(start), np.asarray(Image.open(photos / "0.png"))
    assert np.array_equal(tuned.tokenize(photo).ids, before.tokenize(photo).ids)
    for name, x in before.state_dict().items():
        assert torch.equal(tuned.state_dict()[name], x) == (not name.startswith("decoder")), name


def test_the_adaptive_weight_is_not_computed_before_the_discriminator_is_minded(photos, tmp_path, monkeypatch):
    from vqtok.training import adversary

    steps = []
    weigh = adversary.adaptive_weight
    monkeypatch.setattr(adversary, "adaptive_weight", lambda *args: steps.append(1) or weigh(*args))
    vqtok.train(mapping(photos, **ADVERSARIAL), tmp_path / "run")
    assert len(steps) == 12 - 5
    seen = [row["step"] for row in rows(tmp_path / "run", "train") if "weight" in row.get("discriminator", {})]
    assert seen == [6, 8, 10, 12]


def test_a_gradient_that_is_not_finite_moves_nothing_and_a_training_without_hope_ends(photos, tmp_path, monkeypatch):
    recipe = Recipe.from_mapping(mapping(photos))
    state = TrainingState(loops.start_tokenizer(recipe), recipe, None, loops.launch(recipe, "cpu"))
    before = {name: x.clone() for name, x in state.tokenizer.state_dict().items() if "quantizer" not in name}
    monkeypatch.setattr("vqtok.training.passes.l2", lambda a, b: (a - b).square().mean() * float("nan"))
    crops = np.zeros((4, 32, 32, 3), np.uint8)
    for _ in range(49):
        state.train_step(crops)
    for name, x in before.items():
        assert torch.equal(state.tokenizer.state_dict()[name], x), name
    with pytest.raises(ConfigError, match="diverged"):
        state.train_step(crops)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"losses": {"l2": 1.0, "comitment": 0.1}}, "did you mean 'commitment'"),
        ({"losses": {"commitment": 0.1}}, "losses: expected one of l1"),
        ({"model__preset": "photo-f9"}, "did you mean 'photo-f8'"),
        ({"model__options": {"vocab_sise": 4}}, "did you mean 'vocab_size'"),
        ({"optimizer__learning_rate": "fast"}, "optimizer.learning_rate"),
        ({"steps": 5}, "steps"),
        ({"stages": []}, "stages"),
    ],
)
def test_a_recipe_that_says_nonsense_is_refused_before_anything_is_made(photos, changes, words):
    with pytest.raises(ConfigError, match=words):
        Recipe.from_mapping(mapping(photos, **changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"losses": {"l2": 1.0}}, "no weight for the loss 'commitment'"),
        ({"stages__1__size": 33}, "multiples of 8"),
        ({"losses": {"l2": 1.0, "commitment": 0.1, "kl": 1.0}}, "no such loss"),
        ({"losses": {"l2": 1.0, "commitment": 0.1, "logit_laplace": 1.0}}, "logit-Laplace"),
        ({"stages__1__frozen": ["decodr"]}, "encoder, quantizer, decoder"),
        ({"stages__1__teacher": True}, "dynamic"),
        ({"discriminator": {"learning_rate": 1e-3, "layers": 4}}, "height and width of at least 48"),
    ],
)
def test_what_only_a_later_stage_would_refuse_is_refused_at_once(photos, tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        vqtok.train(mapping(photos, **changes), tmp_path / "run")
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_a_recipe_reads_back_as_it_was_written_and_a_run_is_of_one_recipe(photos, tmp_path):
    recipe = Recipe.from_mapping(mapping(photos, temperature={"start": 1.0, "end": 0.5, "steps": 9}, **ADVERSARIAL))
    (tmp_path / "recipe.toml").write_text(recipe_text(recipe))
    assert read_recipe(tmp_path / "recipe.toml") == recipe
    assert read_recipe(tmp_path / "recipe.toml", ["stages.0.steps=7", "seed=3"]).steps == recipe.steps + 4
    vqtok.train(mapping(photos), tmp_path / "run")
    with pytest.raises(MismatchError, match=r"optimizer\.learning_rate: 0\.001 before, 0\.002 now"):
        vqtok.train(mapping(photos, optimizer__learning_rate=2e-3), tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.doc").write_text("mine")
    with pytest.raises(OutputError, match=r"thesis\.doc"):
        vqtok.train(mapping(photos), tmp_path / "other")


def test_a_finished_run_is_left_as_it_is(photos, tmp_path):
    model = vqtok.train(mapping(photos), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert vqtok.train(mapping(photos), tmp_path / "run") == model
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_validation_image_that_loses_nothing_does_not_hide_the_others():
    blank, photo = np.zeros((8, 8, 3), np.uint8), np.asarray(Image.open(PHOTO).crop((0, 0, 8, 8)))
    assert mean_psnr([blank, photo], [blank, blank]) == psnr(photo, blank)
    assert mean_psnr([blank], [blank]) == float("inf")
