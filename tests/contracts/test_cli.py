"""The command: pipes, many inputs, bad inputs, exit codes (DESIGN: 0 done ... 143), and nothing partial left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from PIL import Image

import vqtok
from vqtok.cli.detokenize import file_names
from vqtok.store.temporary import temporary_path

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "examples" / "photo.jpg"


def run(*arguments, stdin: bytes = b"", cwd=None, env=None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "vqtok", *map(str, arguments)]
    env = {**os.environ, **(env or {})}
    return subprocess.run(command, input=stdin, capture_output=True, timeout=100, cwd=cwd, env=env, check=False)


def image(path: Path, seed: int = 0, size=(24, 40)) -> Path:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC).save(path)
    return path


def only(folder: Path) -> list[str]:
    """All files and folders, hidden ones included."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def one_line(result: subprocess.CompletedProcess, code: int) -> str:
    assert result.returncode == code, result.stderr.decode()
    assert result.stdout == b""
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(("vqtok: ", "Error: "))
    return lines[0]


def test_photo_to_tokens_to_photo(tmp_path):
    done = run("tokenize", PHOTO, "-o", "a.vqt", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    result = json.loads(done.stdout)
    tokens = vqtok.load_tokens(tmp_path / "a.vqt")
    assert result["counts"] == {"seen": 1, "ok": 1, "failed": 0}
    assert result["fingerprint"] == tokens.fingerprint == vqtok.load().fingerprint
    assert tokens.sizes.tolist() == [[400, 600]]
    assert tokens.grids.tolist() == [[1, 50, 75]]
    assert run("detokenize", "a.vqt", "-o", "a.png", cwd=tmp_path).returncode == 0
    back = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.array_equal(back, np.asarray(vqtok.load().detokenize(tokens)[0]))
    original = np.asarray(Image.open(PHOTO))
    assert 10 * np.log10(255**2 / np.mean((back.astype(float) - original) ** 2)) > 25
    assert only(tmp_path) == ["a.png", "a.vqt"]


def test_tiles_give_the_same_tokens_and_are_recorded(tmp_path):
    assert run("tokenize", PHOTO, "-o", "whole.vqt", cwd=tmp_path).returncode == 0
    done = run("tokenize", PHOTO, "-o", "tiled.vqt", "--tile", "200", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr.decode()
    assert b"whole image" not in done.stderr, "this model is local"
    whole, tiled = (vqtok.load_tokens(tmp_path / name) for name in ("whole.vqt", "tiled.vqt"))
    assert np.array_equal(whole.ids, tiled.ids)
    assert tiled.record["execution"]["tile"] == 200
    assert run("tokenize", PHOTO, "-o", "run/", "--tile", "200", cwd=tmp_path).returncode == 0
    made = vqtok.load_tokens(tmp_path / "run/shards/00000.vqt")
    assert np.array_equal(made.ids, tiled.ids)
    assert made.record["execution"]["tile"] == 200


def test_a_pipe_there_and_back(tmp_path):
    source = image(tmp_path / "a.png").read_bytes()
    there = run("tokenize", "-", "-o", "-", stdin=source)
    assert there.returncode == 0, there.stderr.decode()
    back = run("detokenize", "-", "-o", "-", stdin=there.stdout)
    assert back.returncode == 0, back.stderr.decode()
    assert back.stdout.startswith(b"\x89PNG")
    assert there.stderr == back.stderr == b""
    both = run("reconstruct", "-", "-o", "-", "--only", stdin=source)
    assert both.stdout == back.stdout


def test_folders_patterns_and_files_keep_their_keys(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for i, name in enumerate(["b.png", "a.PNG", "sub/c.bmp", "ä ü.webp"]):
        image(tmp_path / "in" / name, i)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    assert run("tokenize", "in", "-o", "a.vqt", cwd=tmp_path).returncode == 0
    assert vqtok.load_tokens(tmp_path / "a.vqt").keys == ("a.PNG", "b.png", "sub/c.bmp", "ä ü.webp")
    assert run("tokenize", "in/*.png", "in/sub", "-o", "b.vqt", cwd=tmp_path).returncode == 0
    assert vqtok.load_tokens(tmp_path / "b.vqt").keys == ("in/b.png", "in/sub/c.bmp")
    assert run("detokenize", "a.vqt", "-o", "out", cwd=tmp_path).returncode == 0
    assert only(tmp_path / "out") == ["%C3%A4 %C3%BC.png", "a.png", "b.png", "sub", "sub/c.png"]


def test_bad_images_get_one_line_each_and_the_others_are_done(tmp_path):
    good = image(tmp_path / "good.png")
    (tmp_path / "short.png").write_bytes(good.read_bytes()[:-30])
    (tmp_path / "lie.jpg").write_text("<html>")
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "fifo.png")
    bad = ["short.png", "lie.jpg", "empty.png", "fifo.png", "gone.png"]
    done = run("tokenize", *bad[:3], good.name, *bad[3:], "-o", "a.vqt", "--json", cwd=tmp_path)
    assert done.returncode == 3
    result = json.loads(done.stdout)
    assert [failure["key"] for failure in result["failures"]] == bad
    assert [failure["kind"] for failure in result["failures"]] == [
        "truncated",
        "format",
        "empty",
        "unreadable",
        "missing",
    ]
    lines = done.stderr.decode().splitlines()
    assert len(lines) == len(bad) + 1
    assert all(name in line for name, line in zip(bad, lines[:-1], strict=True))
    assert vqtok.load_tokens(tmp_path / "a.vqt").keys == ("good.png",)


def test_when_no_image_can_be_read_nothing_is_written(tmp_path):
    (tmp_path / "lie.jpg").write_text("<html>")
    for arguments in (["tokenize", "lie.jpg", "-o", "a.vqt"], ["reconstruct", "lie.jpg", "-o", "folder"]):
        done = run(*arguments, "--json", cwd=tmp_path)
        assert done.returncode == 4
        assert b"Traceback" not in done.stderr
        assert not json.loads(done.stdout).get("outputs")
        assert only(tmp_path) == ["lie.jpg"]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("tokenize a.png -o - > /dev/full", 5),
        ("--help > /dev/full", 5),
        ("--help >&-", 5),
        ("tokenize a.png -o - >&-", 5),
        ("tokenize a.png -o b.vqt --json >&-", 5),
        ("tokenize - -o b.vqt <&-", 4),
        ("detokenize - -o b.png <&-", 4),
        ("tokenize a.png -o b.vqt 2> /dev/full", 0),
        ("tokenize a.png -o b.vqt 2>&-", 0),
        ("tokenize gone.png -o b.vqt 2>&-", 4),
        ("--help | (exec <&-; sleep 9); exit ${PIPESTATUS[0]}", 141),
    ],
)
def test_streams_that_are_closed_or_full_end_as_documented(command, code, tmp_path):
    image(tmp_path / "a.png")
    line = f"{sys.executable} -m vqtok {command}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == (code in (4, 5) and "2>" not in command)
    assert done.stdout == ""
    assert ("b.vqt" in only(tmp_path)) == ("b.vqt" in command and code in (0, 5))
    if code == 0:
        assert len(vqtok.load_tokens(tmp_path / "b.vqt")) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give up root's right to read all")
def test_a_folder_that_cannot_be_read_is_a_failed_input(tmp_path):
    (tmp_path / "photos/closed").mkdir(parents=True)
    image(tmp_path / "photos/a.png")
    (tmp_path / "photos/closed").chmod(0)
    drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    if not shutil.which(drop[0]):
        pytest.skip("needs setpriv")
    command = [*drop, sys.executable, "-m", "vqtok", "tokenize", "photos", "-o", "a.vqt", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    (tmp_path / "photos/closed").chmod(0o700)
    assert done.returncode == 3, done.stderr
    assert [failure["key"] for failure in json.loads(done.stdout)["failures"]] == ["closed"]


def test_an_image_whose_latents_overflow_is_named_and_its_neighbours_are_done(tmp_path):
    torch.manual_seed(0)
    model = vqtok.build("photo-f8", vocab_size=16, channels=(8, 8, 8)).eval()
    flat, wild = np.full((16, 16, 3), 128, np.uint8), np.tile(np.array([[0, 255]], np.uint8), (16, 8))
    for number, array in enumerate((flat, wild, flat)):
        Image.fromarray(array).convert("RGB").save(tmp_path / f"{number}.png")
    with torch.no_grad():
        for module in model.encoder.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.bias.zero_()
        weak, strong = (model.latents(model.preprocess(x)).abs().max() for x in (flat, np.stack([wild] * 3, axis=2)))
        # Without biases the encoder is homogeneous, so the factor can be shared between its ends.
        factor = 2.0**127 / (weak * strong).sqrt().double()
        for convolution in (model.encoder.levels[0][0], model.encoder.conv_out):
            convolution.weight.mul_(factor.sqrt())
    model.save(tmp_path / "m")
    done = run("tokenize", "0.png", "1.png", "2.png", "-o", "a.vqt", "-m", "m", "--json", cwd=tmp_path)
    assert done.returncode == 3, done.stderr.decode()
    assert [(f["key"], f["kind"]) for f in json.loads(done.stdout)["failures"]] == [("1.png", "latents")]
    assert vqtok.load_tokens(tmp_path / "a.vqt").keys == ("0.png", "2.png")


def test_what_a_killed_command_left_is_swept_by_the_next(tmp_path):
    image(tmp_path / "a.png")
    dead = subprocess.Popen(["true"])
    dead.wait()
    name = temporary_path(tmp_path / "a.vqt").name.replace(f".{os.getpid()}.", f".{dead.pid}.")
    (tmp_path / name).write_text("half a file")
    assert run("tokenize", "a.png", "-o", "a.vqt", cwd=tmp_path).returncode == 0
    assert only(tmp_path) == ["a.png", "a.vqt"]


def test_no_two_keys_share_a_file_and_no_file_is_anothers_folder():
    keys = ["a.jpg", "a.png/b.jpg", "A.PNG/b.png", "a.png/b.png", "ü/" * 1300 + "a", "ü/" * 1300 + "b", "..", "con.txt"]
    names = file_names(keys)
    assert len({name.casefold() for name in names}) == len(keys)
    folders = {str(folder).casefold() for name in names for folder in PurePosixPath(name).parents}
    assert folders.isdisjoint(name.casefold() for name in names)
    assert all(".." not in PurePosixPath(name).parts and len(name) < 1100 for name in names)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["tokenize", "gone.png", "-o", "a.txt"], 2, "FILE.vqt"),
        (["tokenize", "-o", "a.vqt"], 2, "at least one"),
        (["tokenize", "-", "-", "-o", "a.vqt"], 2, "'-' once"),
        (["tokenize", "in.png", "-o", "there.vqt"], 5, "--overwrite"),
        (["tokenize", "in.png", "-o", "no/a.vqt"], 5, "folder does not exist"),
        (["tokenize", "in.png", "-o", "in.png/a.vqt"], 5, "not a folder"),
        (["tokenize", "in.png", "-o", f"{'a' * 300}.vqt"], 5, "too long"),
        (["reconstruct", "in.png", "-o", f"{'a' * 300}.png"], 5, "too long"),
        (["reconstruct", "in.png", "-o", "in.png/folder"], 5, "not a folder"),
        (["detokenize", "one.vqt", "-o", "a.gif"], 2, ".png .webp"),
        (["detokenize", "wide.vqt", "-o", "a.webp"], 5, "use .png"),
        (["detokenize", "deep.vqt", "-o", "a.png"], 7, "one token"),
        (["detokenize", "runs.vqt", "-o", "a.png"], 7, "one token"),
        (["inspect", "runs.vqt", "--picture", "a.png"], 2, "grids"),
        (["inspect", "one.vqt", "--picture", "a.txt"], 2, ".png .webp"),
        (["inspect", "one.vqt", "--image", "in.png"], 2, "--picture IMAGE"),
        (["inspect", "none", "--picture", "a.png", "--image", "in.png"], 2, "a token file"),
        (["inspect", "two.vqt", "--picture", "a.png", "--image", "in.png"], 2, "one of the file's 2 images"),
        (["inspect", "one.vqt", "--picture", "a.png", "--image", "gone.png"], 4, "gone.png"),
        (["inspect", "one.vqt", "--picture", "in.png"], 5, "--overwrite"),
        (["tokenize", "in.png", "-o", "a.vqt", "--device", "meta"], 8, "meta"),
        (["tokenize", "no\nsuch\x1b[31m*", "-o", "a.vqt"], 4, r"no\nsuch\x1b[31m"),
        (["tokenize", "none", "-o", "a.vqt"], 4, "found none"),
        (["tokenize", "*.gif", "-o", "a.vqt"], 4, "found none"),
        (["tokenize", "in.png", "-o", "a.vqt", "-m", "none"], 4, "none"),
        (["tokenize", "in.png", "-o", "a.vqt", "--device", "cuda:99"], 8, "cuda:99"),
        (["detokenize", "gone.vqt", "-o", "a.png"], 4, "gone.vqt"),
        (["detokenize", "in.png", "-o", "a.png"], 6, "in.png"),
        (["detokenize", "two.vqt", "-o", "a.png"], 2, "got 2"),
        (["detokenize", "stranger.vqt", "-o", "a.png"], 7, "load the model"),
        (["detokenize", "one.vqt", "-o", "in.png"], 5, "--overwrite"),
        (["inspect", "gone.vqt"], 4, "gone.vqt"),
        (["inspect", "none"], 4, "config.json"),
        (["inspect", "in.png"], 6, "in.png"),
        (["reconstruct", "in.png", "-o", "in.png"], 5, "--overwrite"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_what_cannot_be_done_is_one_line_and_the_documented_code(arguments, code, words, tmp_path):
    image(tmp_path / "in.png")
    (tmp_path / "none").mkdir()
    (tmp_path / "there.vqt").write_text("precious")
    ids, vocab = np.zeros(2, np.int64), 8192
    grids, sizes = np.ones((2, 3), np.int64), np.full((2, 2), 8)
    two = vqtok.Tokens(ids, np.arange(3), grids, sizes, vocab, ("a", "b"), "")
    vqtok.save_tokens(tmp_path / "two.vqt", two)
    vqtok.save_tokens(tmp_path / "one.vqt", two[0])
    for name, grid, size, count in (
        ("wide", (1, 1, 2100), (8, 16800), 2100),
        ("deep", (2, 1, 1), (8, 8), 2),
        ("runs", (1, 2, 2), (16, 16), 3),
    ):
        many = np.zeros(count, np.int64)
        row = vqtok.Tokens(many, np.array([0, count]), np.array([grid]), np.array([size]), vocab, ("a",), "")
        vqtok.save_tokens(tmp_path / f"{name}.vqt", row)
    stranger = vqtok.Tokens(ids[:1], np.arange(2), grids[:1], sizes[:1], vocab, ("a",), "0" * 64)
    vqtok.save_tokens(tmp_path / "stranger.vqt", stranger)
    before = only(tmp_path)
    assert words in one_line(run(*arguments, cwd=tmp_path), code)
    assert only(tmp_path) == before
    assert (tmp_path / "there.vqt").read_text() == "precious"


def test_usage_errors_are_exit_2():
    for arguments in (["tokenize", "--frobnicate"], ["frobnicate"], ["tokenize"]):
        done = run(*arguments)
        assert done.returncode == 2, arguments
        assert b"Traceback" not in done.stderr


def test_inspect_says_what_is_there_and_draws_it(tmp_path):
    image(tmp_path / "a.png")
    run("tokenize", "a.png", "-o", "a.vqt", cwd=tmp_path)
    report = json.loads(run("inspect", "a.vqt", "--json", "--picture", "map.png", cwd=tmp_path).stdout)
    assert (report["images"], report["tokens"], report["vocab_size"]) == (1, 15, 8192)
    assert report["rows"] == [{"key": "a.png", "size": [24, 40], "grid": [1, 3, 5], "tokens": 15}]
    assert report["execution"]["precision"] == "float32"
    drawn = np.asarray(Image.open(tmp_path / "map.png"))
    tokens = vqtok.load_tokens(tmp_path / "a.vqt")
    found = {tuple(x) for x in drawn.reshape(-1, 3)}
    from vqtok.evaluation.colours import code_colours

    assert {tuple(x) for x in code_colours(tokens.ids)} <= found
    text = run("inspect", "a.vqt", cwd=tmp_path).stdout.decode()
    assert "key a.png, size [24, 40], grid [1, 3, 5], tokens 15" in text


def test_inspect_says_how_codes_are_used(tmp_path):
    ids = np.array([3, 3, 3, 9] * 4)
    tokens = vqtok.Tokens(ids, np.array([0, 16]), np.array([[2, 2, 4]]), np.array([[16, 32]]), 16, ("a",), "")
    vqtok.save_tokens(tmp_path / "a.vqt", tokens)
    report = json.loads(run("inspect", "a.vqt", "--json", cwd=tmp_path).stdout)
    assert report["codes_used"] == 2
    assert report["codebooks"] == [
        {"used": 1, "dead": 15, "perplexity": 1.0},
        {"used": 2, "dead": 14, "perplexity": 2.0},
    ]


def test_inspect_draws_what_was_kept_over_its_photo(tmp_path):
    source = image(tmp_path / "b.png", size=(60, 120))
    keep = np.zeros((2, 4, 4), np.bool_)
    keep[0, 1, 2] = keep[1, 2, 1] = keep[1, 3, 3] = True
    grids, sizes = np.array([[1, 4, 4]] * 2), np.array([[56, 56]] * 2)
    offsets, ids = np.array([0, 1, 3]), np.array([5, 6, 7])
    tokens = vqtok.Tokens(ids, offsets, grids, sizes, 16, ("x/a.png", "x/b.png"), "", keep=keep.reshape(-1))
    vqtok.save_tokens(tmp_path / "a.vqt", tokens)
    done = run("inspect", "a.vqt", "--picture", "over.png", "--image", "b.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    from vqtok.evaluation.token_pictures import token_picture

    expected = token_picture(tokens[1], np.asarray(Image.open(source)))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "over.png")), expected)


def test_inspect_draws_the_codebook_of_a_model_and_says_its_numbers(tmp_path):
    tokenizer = vqtok.build("photo-f8", vocab_size=16, channels=(8, 8, 8))
    tokenizer.quantizer.codebook[3] = tokenizer.quantizer.codebook[9]
    tokenizer.save(tmp_path / "m")
    done = run("inspect", "m", "--picture", "map.png", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    (name, found), *others = json.loads(done.stdout)["codebooks"].items()
    assert (name, others) == ("quantizer", [])
    rows = vqtok.load(tmp_path / "m").quantizer.decode(torch.arange(16)).double()
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf).amin(1)
    assert (found["codes"], found["codes_compared"], found["duplicates"]) == (16, 16, 1)
    assert found["nearest_distance"]["0"] == 0
    assert found["nearest_distance"]["1"] == pytest.approx(distances.max().item(), rel=1e-5)
    assert found["norm"]["0.5"] == pytest.approx(rows.norm(dim=1).quantile(0.5).item(), rel=1e-5)
    from vqtok.evaluation.codebook_pictures import codebook_picture, survey

    expected = codebook_picture("m", {"quantizer": survey(rows.numpy())})
    assert np.array_equal(np.asarray(Image.open(tmp_path / "map.png")), expected)


def test_inspect_prints_names_that_cannot_steer_the_terminal(tmp_path):
    grids, sizes = np.ones((1, 3), np.int64), np.full((1, 2), 8)
    key = "\x1b[2J\rvqtok: all is well"
    tokens = vqtok.Tokens(np.zeros(1, np.int64), np.arange(2), grids, sizes, 8192, (key,), "")
    vqtok.save_tokens(tmp_path / "a.vqt", tokens)
    text = run("inspect", "a.vqt", cwd=tmp_path).stdout.decode()
    assert r"key \x1b[2J\rvqtok" in text
    assert all(c.isprintable() or c == "\n" for c in text)


def test_inspect_reads_the_embedded_model_aloud():
    done = run("inspect", ROOT / "vqtok/assets/photo-f8")
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode()
    for words in ("8192", "Apache-2.0", "examples/train_photo_f8.py"):
        assert words in text, words


def test_inspect_of_a_damaged_model_folder_is_exit_6(tmp_path):
    vqtok.build("photo-f8", vocab_size=16, channels=(8, 8, 8)).save(tmp_path / "m")
    data = bytearray((tmp_path / "m/model.safetensors").read_bytes())
    data[-9] ^= 1
    (tmp_path / "m/model.safetensors").write_bytes(data)
    assert "damaged" in one_line(run("inspect", "m", cwd=tmp_path), 6)


def test_no_configuration_talks_away_what_inspect_found(tmp_path):
    vqtok.build("photo-f8", vocab_size=16, channels=(8, 8, 8)).save(tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    (tmp_path / "m/config.json").write_text(json.dumps({**config, "kind": "token file", "parameters": 0}))
    report = json.loads(run("inspect", "m", "--json", cwd=tmp_path).stdout)
    assert report["kind"] == "model folder"
    assert report["parameters"] > 1000


def test_inspect_of_a_model_folder(tmp_path):
    vqtok.build("photo-f8", vocab_size=16, channels=(8, 8, 8)).save(tmp_path / "m")
    report = json.loads(run("inspect", "m", "--json", cwd=tmp_path).stdout)
    assert report["architecture"]["quantizer"]["vocab_size"] == 16
    assert report["parameters"] == sum(x.numel() for x in vqtok.load(tmp_path / "m").inference_tensors().values())


def test_reconstruct_draws_both_and_says_the_numbers(tmp_path):
    source = image(tmp_path / "a.png", size=(64, 64))
    done = run("reconstruct", "a.png", "-o", "both.png", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    (row,) = json.loads(done.stdout)["images"]
    assert (row["tokens"], row["bytes"], row["bits_per_pixel"]) == (64, 104, 0.2031)
    drawn = np.asarray(Image.open(tmp_path / "both.png")).astype(int)
    original = np.asarray(Image.open(source)).astype(int)
    places = [
        (y, x)
        for y in range(drawn.shape[0] - 63)
        for x in range(drawn.shape[1] - 63)
        if np.array_equal(drawn[y, x : x + 64], original[0]) and np.array_equal(drawn[y : y + 64, x : x + 64], original)
    ]
    assert len(places) == 1, "the original stands once in the picture, pixel for pixel"
    assert run("reconstruct", "a.png", "-o", "only.png", "--only", cwd=tmp_path).returncode == 0
    back = np.asarray(Image.open(tmp_path / "only.png")).astype(int)
    assert round(10 * np.log10(255**2 / np.mean((back - original) ** 2)), 3) == row["psnr"]


def test_doctor_finds_this_installation_sound():
    done = run("doctor", "--json")
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads(done.stdout)
    assert report["failed"] == []
    assert any("taken" in line for line in report["backends"])


def test_a_reader_that_goes_away_ends_the_command_quietly(tmp_path):
    image(tmp_path / "a.png")
    command = f"{sys.executable} -m vqtok tokenize a.png -o - | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout.strip() in ("0", "141")
    assert done.stderr == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_leaves_nothing(number, code, tmp_path):
    command = [sys.executable, "-m", "vqtok", "tokenize", "-", "-o", "a.vqt"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while "libtorch_cpu" not in Path(f"/proc/{process.pid}/maps").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in errors
    assert only(tmp_path) == []
