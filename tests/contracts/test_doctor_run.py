"""`vqtok doctor RUN`: what it says of a run, its exit codes, and that it writes nothing."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from vqtok.cli import group
from vqtok.errors import InputError
from vqtok.training.diagnosis import diagnose, render

RECIPE = """
log_every = 100
stages = [{steps = 400, images = 8, size = 64, quantize = false}, {"steps" = 1600, images = 8, size = 64}]
[model]
preset = "vqvae-tiny"
"""


def train(step: int, **values) -> dict:
    row = {"event": "train", "step": step, "seconds": step / 10, "images_per_second": 80.0, "total": 0.5}
    return row | {"gradient_norm": 0.1, "data_wait": 0.01} | values


def rows() -> list[dict]:
    found = [{"event": "start", "step": 0, "parameters": 5}]
    for step in range(100, 1001, 100):
        found.append(train(step, data_wait=0.5 if 300 <= step <= 500 else 0.01))
        if step % 500 == 0:
            psnr = 20.0 if step == 500 else 19.5
            found.append({"event": "validate", "step": step, "psnr": psnr, "st-lpips-vgg": 0.31, "best": step == 500})
    return found


def write(folder, entries, recipe: str | None = RECIPE):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in entries))
    if recipe is not None:
        (folder / "recipe.toml").write_text(recipe)
    return folder


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "vqtok", "doctor", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=100, check=False)


def test_a_run_is_said_in_numbers(tmp_path):
    report = diagnose(write(tmp_path / "run", rows()))
    assert (report["model"], report["step"], report["total"]) == ("vqvae-tiny", 1000, 2000)
    assert (report["validation"]["psnr"], report["best"]["psnr"], report["best"]["step"]) == (19.5, 20.0, 500)
    assert (report["images_per_second"], report["seconds_left"]) == (80.0, 100.0)
    assert 0 <= report["idle_seconds"] < 60
    assert report["ok"]
    (alarm,) = report["alarms"]
    assert (alarm["name"], alarm["step"], alarm["active"]) == ("slow-data", 500, False)
    text = render(report)
    assert text[0].endswith("run: vqvae-tiny, step 1,000 of 2,000")
    assert text[1] == "  validation at step 1,000: PSNR 19.50 dB  st-lpips-vgg 0.31"
    assert text[2] == "  best at step 500: PSNR 20.00 dB  st-lpips-vgg 0.31"
    assert text[3].startswith("  80 img/s  0:01:40 left  last row 0:00:0")
    assert text[4] == "was wrong and is over"
    assert "50% of the time" in text[5]
    assert "data.workers=8" in text[6]


def test_a_run_without_alarms_has_nothing_wrong(tmp_path):
    report = diagnose(write(tmp_path / "run", [train(100 * i) for i in range(1, 9)], None))
    assert (report["ok"], report["alarms"], report["total"], report["model"]) == (True, [], None, None)
    assert report["seconds_left"] is None
    assert render(report)[-1] == "nothing wrong"


def test_an_active_alarm_says_what_was_seen_and_what_is_now(tmp_path):
    entries = [train(100 * i, data_wait=0.01 if i < 5 else 0.3 if i < 9 else 0.8) for i in range(1, 16)]
    report = diagnose(write(tmp_path / "run", entries))
    (alarm,) = report["alarms"]
    assert (report["ok"], alarm["active"], alarm["step"]) == (False, True, 700)
    assert alarm["message"].startswith("30%")
    assert alarm["now"].startswith("80%")
    text = "\n".join(render(report))
    assert text.index("wrong now") < text.index("30% of") < text.index("now: 80% of") < text.index("what helps")


def test_the_speed_is_that_of_the_last_start(tmp_path):
    before = [train(100 * i, seconds=1000.0 * i) for i in range(1, 4)]
    after = [train(100 * i, seconds=50.0 * (i - 3)) for i in range(4, 7)]
    report = diagnose(write(tmp_path / "run", [*before, {"event": "start", "step": 300}, *after]))
    assert report["seconds_left"] == (2000 - 600) * 0.5


def test_alarms_that_the_training_wrote_itself_stand_until_it_starts_again(tmp_path):
    foreign = {"event": "alarm", "step": 150, "name": "gave-up", "message": "so it was", "remedy": "this"}
    report = diagnose(write(tmp_path / "run", [train(100), foreign]))
    assert [(row["name"], row["active"]) for row in report["alarms"]] == [("gave-up", True)]
    report = diagnose(write(tmp_path / "run", [train(100), foreign, {"event": "start", "step": 100}]))
    assert [(row["name"], row["active"]) for row in report["alarms"]] == [("gave-up", False)]
    known = {"event": "alarm", "step": 100, "name": "nan", "message": "", "remedy": ""}
    assert diagnose(write(tmp_path / "run", [train(100), known]))["alarms"] == [], "the numbers decide"


def test_a_run_that_has_only_begun_is_one(tmp_path):
    folder = write(tmp_path / "run", [])
    (folder / "metrics.jsonl").unlink()
    report = diagnose(folder)
    assert (report["step"], report["total"], report["idle_seconds"], report["ok"]) == (0, 2000, None, True)
    assert "no row yet" in render(report)[1]


@pytest.mark.parametrize("recipe", ["not toml [", "stages = 3\nmodel = 4", 'stages = [{steps = "x"}, 5]\n[model]'])
def test_a_recipe_that_cannot_be_read_takes_nothing_from_the_alarms(tmp_path, recipe):
    report = diagnose(write(tmp_path / "run", [train(1, total="nan")], recipe))
    assert (report["total"], report["model"], [row["name"] for row in report["alarms"]]) == (None, None, ["nan"])


def test_numbers_that_are_none_are_said_and_not_tripped_over(tmp_path):
    odd = [
        train(100, seconds="nan", images_per_second="inf", total=None),
        {"event": "validate", "step": 100, "psnr": "inf", "best": True},
        train(200, seconds=[], losses=3, discriminator="x", usage={"a": 1e400}),
    ]
    report = diagnose(write(tmp_path / "run", odd))
    json.dumps(report, allow_nan=False)
    assert "PSNR inf dB" in "\n".join(render(report))


def test_the_command_says_it_and_ends_with_0_whatever_is_wrong(tmp_path):
    entries = [train(100, losses={"l2\x1b[2J": "nan"}, total="nan")]
    folder = write(tmp_path / "run", entries)
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"event": "tr')
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    os.utime(path, (time.time() - 7200,) * 2)
    done = run(folder, "--picture", tmp_path / "curves.png")
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert "last row 2:00:0" in text
    assert "wrong now" in text
    assert "losses.l2\\x1b[2J" in text
    assert "\x1b" not in text
    assert np.asarray(Image.open(tmp_path / "curves.png")).shape[2] == 3
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "it only looks"
    done = run(folder, "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    report = json.loads(done.stdout)
    assert (report["schema"], report["ok"], report["alarms"][0]["name"]) == ("vqtok.training/1", False, "nan")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "check the path"),
        ({"manifest.json": "{}"}, "vqtok status"),
        ({"metrics.jsonl": "{\n{}\n"}, "line 1"),
    ],
)
def test_what_is_no_run_is_exit_4(tmp_path, files, words):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        diagnose(tmp_path)
    assert caught.value.exit_code == 4


def test_no_such_folder_is_one_line_and_exit_4(tmp_path):
    done = run(tmp_path / "nowhere")
    assert (done.returncode, done.stdout) == (4, b"")
    assert len(done.stderr.decode().splitlines()) == 1


def test_a_picture_without_a_run_is_exit_2():
    done = run("--picture", "a.png")
    assert (done.returncode, done.stdout) == (2, b"")
    assert "vqtok doctor RUN --picture" in done.stderr.decode()


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom vqtok.cli import group\n"
        "assert CliRunner().invoke(group, ['doctor', '--help']).exit_code == 0\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
    assert "[RUN]" in CliRunner().invoke(group, ["doctor", "--help"]).output
