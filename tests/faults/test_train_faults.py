"""Trainings under fire: a start that is refused leaves nothing, and one that is stopped goes on to the same bits.

Most of it runs the command in this process: `main` with its arguments, its exit code and what it printed.
"""

import errno
import gc
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vqtok
from tests.faults.test_commit import ALLOCATING, System, fail, short_write
from tests.laws.test_training import ADVERSARIAL, REVIVING, assert_equal, last_state, mapping, rows
from vqtok.cli import main
from vqtok.errors import IntegrityError, OutputError
from vqtok.store.lock import locked
from vqtok.training import Recipe
from vqtok.training import checkpoints as checkpoints_module
from vqtok.training import log as log_module
from vqtok.training.checkpoints import Checkpoints
from vqtok.training.recipe import recipe_text
from vqtok.training.state import TrainingState

commit = importlib.import_module("vqtok.store.commit")
commit_folder = importlib.import_module("vqtok.store.commit_folder")
PHOTO = Path(__file__).parents[2] / "examples/photo.jpg"
EVERYTHING = REVIVING | ADVERSARIAL


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(4):
        Image.open(PHOTO).crop((100 * i, 50 * i, 100 * i + 120, 50 * i + 100)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory) -> Path:
    """A training that nobody disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    vqtok.train(mapping(photos, **EVERYTHING), run)
    return run


class Ended:
    """How a command ended."""

    def __init__(self, code, out, errors):
        self.code, self.out, self.errors = code, out, errors

    def line(self, code: int) -> str:
        """Return the one line of a refusal."""
        assert (self.code, self.out) == (code, ""), self.errors
        (line,) = self.errors.splitlines()
        assert line.startswith("vqtok: ")
        return line


@pytest.fixture
def train(photos, tmp_path, monkeypatch, capfd):
    """Run ``vqtok train`` on the recipe of `whole` in a folder of its own, with more arguments."""
    (tmp_path / "recipe.toml").write_text(recipe_text(Recipe.from_mapping(mapping(photos, **EVERYTHING))))
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments, recipe="recipe.toml", output="run") -> Ended:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["vqtok", "train", str(recipe), "-o", str(output), *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            main()
        gc.enable()
        return Ended(ending.value.code, *capfd.readouterr())

    yield run
    signal.signal(signal.SIGTERM, before)


def at_step(monkeypatch, wanted: int, action) -> None:
    """Do something before a step, once."""
    step, done = TrainingState.train_step, []

    def acting(state, batch):
        if state.step == wanted and not done:
            done.append(1)
            action(state)
        step(state, batch)

    monkeypatch.setattr(TrainingState, "train_step", acting)


def assert_same(run: Path, whole: Path) -> None:
    assert_equal(last_state(run), last_state(whole))
    assert vqtok.load(run / "model").fingerprint == vqtok.load(whole / "model").fingerprint
    for event in ("train", "validate"):
        assert rows(run, event) == rows(whole, event)


def spoil(folder: Path) -> None:
    """Make folders that are no training images: empty, of damaged files, of other files, of NaN."""
    for name in ("empty", "corrupt", "text", "nan"):
        (folder / name).mkdir()
    for i in range(4):
        (folder / "corrupt" / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n rubbish")
        nan = Image.fromarray(np.full((64, 64), np.nan, np.float32))
        nan.save(folder / "nan" / f"{i}.tif")
        (folder / "nan" / f"{i}.tif").rename(folder / "nan" / f"{i}.png")
    (folder / "text" / "notes.txt").write_text("no image")


# Each of them: the change to the recipe, the exit code, words of the one line.
REFUSED = {
    "wrong path": ('data.train=[{path="nowhere"}]', 4, "nowhere: expected training images"),
    "empty folder": ('data.train=[{path="empty"}]', 4, "found none in this folder"),
    "other files": ('data.train=[{path="text"}]', 4, "found none in this folder"),
    "corrupt files": ('data.train=[{path="corrupt"}]', 3, "raise data.allowed_failures"),
    "NaN for colours": ('data.train=[{path="nan"}]', 3, "raise data.allowed_failures"),
    "nothing to validate on": ("data.validate_on=[]", 2, "data.validate_on: expected images"),
    "empty validation": ('data.validate_on=["empty"]', 4, "found none in this folder"),
    "corrupt validation": ('data.validate_on=["corrupt"]', 3, "raise data.allowed_failures"),
    "odd size": ("stages.1.size=33", 2, "multiples of 8"),
    "size 0": ("stages.1.size=0", 2, "stages.1.size"),
    "huge size": ("stages.1.size=1000000", 2, "stages.1.size"),
    "huge batch": ("stages.1={steps=9, images=1000000, size=4096}", 8, "GB of memory"),
    "no images": ("stages.1.images=0", 2, "stages.1.images"),
    "huge model": ("model.options.channels=[8, 8, 1000000]", 2, "channels.2"),
    "unknown key": ("optimizer.lerning_rate=1", 2, "'optimizer.lerning_rate': did you mean 'learning_rate'?"),
    "unknown key on top": ("log_evry=3", 2, "unknown key 'log_evry': did you mean 'log_every'?"),
    "unknown key of a stage": ("stages.1.stepps=3", 2, "unknown key 'stages.1.stepps': did you mean 'steps'?"),
    "unknown key of a group": ('data.train=[{pth="x"}]', 2, "unknown key 'data.train.0.pth': did you mean 'path'?"),
    "unknown loss": ("losses.comitment=1", 2, "did you mean 'commitment'"),
    "unknown preset": ("model.preset=photo-f9", 2, "did you mean 'photo-f8'"),
    "NaN rate": ("optimizer.learning_rate=nan", 2, "finite"),
    "NaN weight": ("losses.l2=nan", 2, "finite"),
    "a stage that is not there": ("stages.5.steps=1", 2, "'stages.5.steps'"),
    "a stage without number": ("stages.first.steps=1", 2, "'stages.first.steps'"),
    "a key of a value": ("model.preset.x=1", 2, "'model.preset.x'"),
    "no value": ("optimizer", 2, "KEY.KEY=VALUE"),
    "no key": ("=3", 2, "KEY.KEY=VALUE"),
    "a number for a table": ("data=3", 2, "data"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_start_that_is_refused_says_so_in_one_line_and_leaves_nothing(name, train, tmp_path):
    spoil(tmp_path)
    change, code, words = REFUSED[name]
    before = sorted(tmp_path.rglob("*"))
    assert words in train("--set", change, output="new/run").line(code)
    assert sorted(tmp_path.rglob("*")) == before
    assert words in train("--set", change, "--dry-run", output="new/run").line(code)


@pytest.mark.parametrize("name", ["wrong path", "corrupt files", "odd size", "huge batch", "unknown key"])
def test_a_refused_start_with_overwrite_loses_nothing(name, train, tmp_path, whole):
    spoil(tmp_path)
    assert train("--set", "stages.1.steps=3").code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    change, code, words = REFUSED[name]
    assert words in train("--overwrite", "--set", change).line(code)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_recipes_and_folders_that_are_none(train, tmp_path):
    assert "cannot read it" in train(recipe="missing.toml").line(4)
    assert "cannot read it" in train(recipe=PHOTO).line(4)
    (tmp_path / "list.toml").write_text("steps = [1,\n")
    assert "expected TOML" in train(recipe="list.toml").line(2)
    (tmp_path / "file").touch()
    assert "not a folder" in train(output="file/run").line(5)
    assert "cannot write" in train(output="file").line(5)
    assert "cannot write" in train(output="/proc/run").line(5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.doc").touch()
    for option in ((), ("--overwrite",), ("--dry-run",)):
        assert "'thesis.doc'" in train(*option, output="mine").line(5)
    assert [x.name for x in (tmp_path / "mine").iterdir()] == ["thesis.doc"]


def test_resume_overwrite_dry_run_and_json(train, tmp_path, whole):
    assert "both" in train("--resume", "--overwrite").line(2)
    assert "leave out --resume" in train("--resume").line(4)
    planned = train("--dry-run")
    assert (planned.code, planned.errors) == (0, "")
    plan = json.loads(planned.out)
    assert (plan["steps"], plan["images"], plan["validation_images"]) == (12, 4, 2)
    assert not (tmp_path / "run").exists()
    done = train("--json")
    assert json.loads(done.out) == {"run": "run", "model": "run/model", "steps": 12}
    assert not (tmp_path / "run/LOCK").exists()
    assert "seed: 0 before, 5 now" in train("--set", "seed=5").line(7)
    assert "seed: 0 before, 5 now" in train("--set", "seed=5", "--dry-run").line(7)
    assert_same(tmp_path / "run", whole)
    assert train("--resume").errors == "run/model: trained for 12 steps\n"
    assert train("--overwrite", "--set", "seed=5").code == 0
    assert [row["step"] for row in rows(tmp_path / "run", "start")] == [0]
    with pytest.raises(AssertionError):
        assert_equal(*(last_state(x)["average"] for x in (tmp_path / "run", whole)))
    (tmp_path / "run/recipe.toml").unlink()
    assert "expected recipe.toml beside checkpoints" in train().line(7)


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("step", [1, 7])
def test_a_signal_ends_after_the_step_and_the_same_command_goes_on(
    kind, code, step, train, tmp_path, whole, monkeypatch
):
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda _: os.kill(os.getpid(), kind))
        ended = train()
    assert (ended.code, ended.out) == (code, "")
    assert ended.errors == f"interrupted after step {step + 1}: the same command goes on from there\n"
    assert last_state(tmp_path / "run")["step"] == step + 1
    assert train("--resume").code == 0
    assert_same(tmp_path / "run", whole)


def test_a_signal_while_it_loads_leaves_nothing(train, tmp_path, monkeypatch):
    from vqtok.training import loop

    with monkeypatch.context() as patch:
        patch.setattr(loop, "perceptual_loss", lambda _: os.kill(os.getpid(), signal.SIGTERM))
        assert train().code == 143
    assert not (tmp_path / "run").exists()


def run_with(recipe: dict, path: Path, system: System, patch) -> OutputError | None:
    for module in (commit, commit_folder, log_module, checkpoints_module):
        patch.setattr(module, "os", system)
    patch.setattr(commit_folder, "_exchange", system.exchange)
    try:
        vqtok.train(recipe, path)
    except OutputError as error:
        return error
    return None


FAULTS = {"ENOSPC": (fail(errno.ENOSPC), True), "EIO": (fail(errno.EIO), False), "short": (short_write, True)}


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("stride", [pytest.param(29, id="some"), pytest.param(1, id="every", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FAULTS)
def test_a_disk_that_fails_at_any_write_and_the_training_that_goes_on(name, stride, photos, tmp_path, monkeypatch):
    fault, forever = FAULTS[name]
    recipe = mapping(photos, stages=[{"steps": 4, "images": 2, "size": 32}], validate_every=2, **ADVERSARIAL)
    vqtok.train(recipe, tmp_path / "whole")
    for at in range(1, 500, stride):
        run, system = tmp_path / str(at), System(fault, at, forever, ALLOCATING if name != "short" else {"write"})
        with monkeypatch.context() as patch:
            error = run_with(recipe, run, system, patch)
        assert (error is not None) == (system.fired and name != "short"), at
        if error is not None:
            kept = Checkpoints(run / "checkpoints")
            assert kept.read_last() is None or kept.steps() in ([2], [2, 4])
            vqtok.train(recipe, run)
        assert_same(run, tmp_path / "whole")
        if not system.fired:
            return
    pytest.fail("never completed")


def test_a_full_disk_under_tensorboard_and_under_old_checkpoints(train, tmp_path, whole, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(SummaryWriter, "add_scalar", full)
        assert "the disk is full" in train().line(5)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints_module.shutil, "rmtree", full)
        assert "the disk is full" in train().line(5)
    assert train().code == 0
    assert_same(tmp_path / "run", whole)


def test_a_limit_of_the_system_itself_leaves_a_training_that_goes_on(train, tmp_path, whole):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        assert "File too large" in train().line(5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert train().code == 0
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize("name", ["state.pt", "state.sha256"])
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_goes_on(name, how, train, tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(patch, 10, lambda _: os.kill(os.getpid(), signal.SIGTERM))
        assert train().code == 143
    last = max((tmp_path / "run/checkpoints").iterdir())
    data = bytearray((last / name).read_bytes())
    if how == "gone":
        (last / name).unlink()
    else:
        data[len(data) // 2] ^= 1
        (last / name).write_bytes(data if how == "flip" else data[: len(data) // 2])
    if (name, how) != ("state.pt", "gone"):  # without it there is no checkpoint
        line = train().line(6)
        assert str(last.relative_to(tmp_path)) in line
        assert "remove that folder to go on from the one before" in line
        for path in last.iterdir():
            path.unlink()
        last.rmdir()
    assert train().code == 0
    assert_same(tmp_path / "run", whole)


def test_every_flipped_bit_of_a_checkpoint_is_found(tmp_path):
    checkpoints, rng = Checkpoints(tmp_path), np.random.default_rng(0)
    checkpoints.write(7, {"step": 7, "weight": torch.arange(500.0)}, None)
    path = tmp_path / "00000007/state.pt"
    data = path.read_bytes()
    for _ in range(200):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match="begin again"):
            checkpoints.read_last()


@pytest.mark.timeout(300)
def test_two_trainings_in_one_folder_are_one_too_many(train, tmp_path, whole, monkeypatch):
    asked = []
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda _: asked.extend(other(tmp_path, option) for option in ("--resume", "--overwrite")))
        assert train().code == 0
    for done in asked:
        assert (done.returncode, done.stdout) == (5, ""), done.stderr
        assert f"nobody writes to, but process {os.getpid()} on" in done.stderr
    assert_same(tmp_path / "run", whole)


def other(folder: Path, option: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "vqtok", "train", "recipe.toml", "-o", "run", option]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250, check=False)


def test_a_lock_whose_file_was_removed_by_its_holder_is_no_lock(tmp_path):
    path = tmp_path / "LOCK"
    with locked(path):
        path.unlink()
        with locked(path), pytest.raises(OutputError, match="nobody writes to"), locked(path):
            pass


@pytest.mark.parametrize(
    ("kind", "words"), [("encoder", "the training has diverged"), ("quantizer", "did training diverge")]
)
def test_weights_that_become_nan_end_it_and_are_never_kept(kind, words, train, tmp_path, whole, monkeypatch):
    def poison(state):
        tensors = [x for name, x in state.tokenizer.state_dict().items() if name.startswith(kind) and x.ndim > 1]
        for x in tensors:
            x.fill_(torch.nan)

    with monkeypatch.context() as patch:
        at_step(patch, 7, poison)
        ended = train()
    assert ended.code == 2
    assert words in ended.errors.splitlines()[-1]
    assert "Traceback" not in ended.errors
    assert all(torch.isfinite(x).all() for x in last_state(tmp_path / "run")["tokenizer"].values())
    assert train().code == 0
    assert_same(tmp_path / "run", whole)


def test_a_model_with_nan_in_it_is_no_start(photos, tmp_path, train):
    tokenizer = vqtok.build("photo-f8", vocab_size=16, channels=(8, 8, 16), residual_blocks=(0, 0, 1))
    tokenizer.save(tmp_path / "m")
    weights = tmp_path / "m/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + np.float32(np.nan).tobytes())
    recipe = mapping(photos, model={"start": str(tmp_path / "m")})
    (tmp_path / "start.toml").write_text(recipe_text(Recipe.from_mapping(recipe)))
    assert "model.safetensors" in train(recipe="start.toml").line(6)  # its checksum notices before anybody looks
    assert not (tmp_path / "run").exists()
    assert "none" in train("--set", f"model.start={tmp_path}/none", recipe="start.toml").line(4)


# Two processes --------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_torchrun_prints_what_one_process_prints(train, tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    command += ["-m", "vqtok", "train", "recipe.toml", "-o", "run", "--device", "cpu", "--json"]
    command += ["--set", "log_every=12", "--set", "precision=bfloat16"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout)["steps"] == 12


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_whose_neighbour_dies_ends_too(dies, train, tmp_path):
    port, ranks = free_port(), []
    command = [sys.executable, "-m", "vqtok", "train", "recipe.toml", "-o", "run", "--device", "cpu"]
    command += ["--set", "stages.1.steps=100000", "--set", "validate_every=100000", "--set", "log_every=1"]
    for rank in range(2):
        env = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "law",
            "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "ROLE_RANK": str(rank),
        }  # fmt: skip
        ranks.append(subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True))
    deadline = time.monotonic() + 80
    log = tmp_path / "run/metrics.jsonl"
    while not (log.exists() and '"train"' in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    ranks[dies].kill()
    ranks[dies].communicate()
    _, errors = ranks[1 - dies].communicate(timeout=30)
    assert ranks[1 - dies].returncode == 8, errors
    assert "but one has ended" in errors.splitlines()[-1]
    assert "Traceback" not in errors
