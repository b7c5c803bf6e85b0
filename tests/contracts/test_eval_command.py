"""`vqtok eval`: its numbers on stdout, its page, and its exit codes."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqtok.cli import group, options
from vqtok.errors import VqtokError
from vqtok.evaluation import metric_table, shown
from vqtok.evaluation.metric_table import METRICS
from vqtok.evaluation.shown import Shown, chosen, difference, difference_factor

ASTRONAUT = Path(__file__).parents[1] / "golden" / "metrics" / "astronaut-256.png"
HOSTILE = "<img src=x onerror='1'>&\"\x1b[2J.png"
VOID = {"meta", "img"}


@pytest.fixture(autouse=True)
def _model(photo_f8, monkeypatch):
    """The default tokenizer, loaded once."""
    monkeypatch.setattr(options, "load_model", lambda model, device, precision: photo_f8)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Seven photographs from flat to busy, of several sizes."""
    (place := tmp_path / "images").mkdir()
    photo = np.asarray(Image.open(ASTRONAUT))
    for i in range(6):
        part = photo[32 * i : 32 * i + 48, 40 : 88 + 8 * (i % 2)].astype(float)
        flat = part.mean() + (part - part.mean()) * i / 5
        Image.fromarray(flat.round().astype(np.uint8)).save(place / f"{i}.png")
    Image.fromarray(photo[:96, :64]).save(place / HOSTILE)
    return place


class Ended:
    def __init__(self, capsys, *arguments):
        self.code, self.error = 0, ""
        try:
            group([*map(str, arguments)], standalone_mode=False)
        except VqtokError as error:
            self.code, self.error = error.exit_code, str(error)
        captured = capsys.readouterr()
        self.stdout, self.stderr = captured.out.decode(), captured.err.decode()


@pytest.fixture
def run(capsysbinary):
    return lambda *arguments: Ended(capsysbinary, "eval", *arguments)


class Page(HTMLParser):
    """Notes elements and text, and that every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.found, self.words = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def pictures(self, title: str) -> list[np.ndarray]:
        sources = [x["src"] for tag, x in self.found if tag == "img" and x["alt"].startswith(title)]
        data = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources]
        return [np.asarray(Image.open(io.BytesIO(x)).convert("RGB")) for x in data]


def test_numbers_are_a_table_or_json_on_stdout(run, folder):
    done = run(folder, "--metrics", "psnr", "--json")
    assert (done.code, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result["schema"] == "vqtok.scores/1"
    assert result["counts"] == {"seen": 7, "ok": 7, "failed": 0}
    assert len(result["images"]) == 7
    found = [row["psnr"] for row in result["images"]]
    assert result["summary"]["psnr"]["value"] == pytest.approx(np.mean(found), abs=1e-5)
    protocol = result["protocol"]
    assert (protocol["images"], protocol["crop"], protocol["preprocess"]["multiple"]) == (7, "none", 8)
    assert protocol["model"]["fingerprints"]["model"]
    table = run(folder, "--metrics", "psnr").stdout
    assert re.search(rf"^PSNR +{result['summary']['psnr']['value']:.3f}  higher is better, 7 samples$", table, re.M)
    assert f"{result['codebooks'][0]['used']} of 8,192 codes used" in table


def test_the_protocol_names_the_weights(run, folder):
    done = run(folder, "--metrics", "kid-efflite0", "--json", "--limit", "2")
    if done.code == 8:
        pytest.skip(done.error)
    protocol = json.loads(done.stdout)["protocol"]
    assert protocol["images"] == 2
    (weights,) = protocol["metrics"]["kid-efflite0"]["weights"]
    assert weights["sha256"].startswith("579344248a93")


def test_a_crop_is_what_is_measured(run, folder):
    result = json.loads(run(folder, "--metrics", "psnr", "--crop", "center:32", "--json").stdout)
    assert {(row["width"], row["height"]) for row in result["images"]} == {(32, 32)}
    assert result["protocol"]["preprocess"]["resize"] == "center"


def test_the_page_shows_worst_median_and_best_as_they_are(run, folder, tmp_path, photo_f8):
    done = run(folder, "--metrics", "psnr", "-o", tmp_path / "report")
    assert done.code == 0, done.error
    assert sorted(x.name for x in (tmp_path / "report").iterdir()) == ["report.html", "scores.json"]
    assert sorted(x.name for x in tmp_path.iterdir()) == ["images", "report"], "nothing partial is left"
    result = json.loads((tmp_path / "report" / "scores.json").read_text())
    page = Page((tmp_path / "report" / "report.html").read_text())
    names = [row["key"] for row in sorted(result["images"], key=lambda row: row["psnr"])]
    titles = [word for word in page.words if re.match("(worst|median|best): ", word)]
    expected = ["worst"] * 3 + ["median"] * 2 + ["best"] * 2  # of seven, two are in two groups
    assert [title.split(": ")[0] for title in titles] == expected
    assert titles[0] == f"worst: {names[0]}".replace("\x1b", "\\x1b")
    originals, back = page.pictures("original"), page.pictures("from tokens")
    assert len(originals) == len(back) == len(page.pictures("codes")) == 7
    for original, image, changed in zip(originals, back, page.pictures("difference"), strict=True):
        assert np.array_equal(image, np.asarray(photo_f8.detokenize(photo_f8.tokenize(original))[0]))
        factor = int(re.search(r"difference x (\d+)", "".join(page.words))[1])
        assert np.array_equal(changed, difference(original, image, factor))
    (usage,) = page.pictures("how often codes occur")
    assert len(np.unique(usage.reshape(-1, 3), axis=0)) > 10
    assert "PSNR" in page.words


def test_hostile_names_are_text_and_the_page_may_load_nothing(run, folder, tmp_path):
    assert run(folder, "--metrics", "psnr", "-o", tmp_path / "report").code == 0
    text = (tmp_path / "report" / "report.html").read_text()
    page = Page(text)
    assert {tag for tag, _ in page.found}.isdisjoint({"script", "iframe", "link", "a"})
    assert "x" not in [attributes.get("src") for _, attributes in page.found]
    assert not any(name.startswith("on") for _, attributes in page.found for name in attributes)
    assert "\x1b" not in text
    assert any("<img src=x onerror='1'>&\"\\x1b[2J.png" in word for word in page.words)
    policy = [x["content"] for tag, x in page.found if x.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not re.search(r"https?://", re.sub('base64,[^"]*', "", text))


def test_metrics_that_cannot_be_had_are_said_to_be_missing(run, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(metric_table, "METRICS", {name: METRICS[name] for name in ("psnr", "lpips-vgg")})
    done = run(folder, "--limit", "1", "-o", tmp_path / "report")
    assert done.code == 0
    assert re.search(r"lpips-vgg: not computed: .*vgg16-397923af\.pth", done.stdout)
    page = Page((tmp_path / "report" / "report.html").read_text())
    assert any("LPIPS (VGG16): not computed" in word for word in page.words)
    named = run(folder, "--metrics", "psnr,lpips-vgg")
    assert (named.code, named.stdout) == (8, "")
    assert "vgg16-397923af.pth" in named.error


def test_a_bad_image_costs_a_line_and_the_exit_code(run, folder, tmp_path):
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    done = run(folder, "--metrics", "psnr", "--json", "-o", tmp_path / "report")
    assert done.code == 3
    assert len([line for line in done.stderr.splitlines() if "bad.png" in line]) == 1
    result = json.loads(done.stdout)
    assert (result["exit_code"], result["counts"]["failed"], result["protocol"]["images"]) == (3, 1, 7)
    assert result["failures"][0]["key"] == "bad.png"
    assert json.loads((tmp_path / "report" / "scores.json").read_text()) == result, "the others are done"
    allowed = run(folder, "--metrics", "psnr", "--json", "--max-failures", "1")
    assert (allowed.code, json.loads(allowed.stdout)["exit_code"]) == (0, 0)
    assert json.loads(allowed.stdout)["ok"] is True
    nothing = run(folder / "bad.png", "--metrics", "psnr", "--max-failures", "100%", "-o", tmp_path / "none")
    assert (nothing.code, nothing.stdout) == (4, "")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["-"], 2),
        ([], 2),
        (["{images}", "--crop", "ten"], 2),
        (["{images}", "--metrics", "fid"], 2),
        (["{images}", "--metrics", ""], 2),
        (["{images}", "--max-failures", "many"], 2),
        (["{images}/none*.png"], 4),
        (["{images}", "--metrics", "psnr", "--weights", "{images}/nowhere"], 4),
        (["{images}", "--metrics", "psnr", "--weights", "{images}/0.png"], 4),
        (["{images}", "--metrics", "psnr", "-o", "{images}"], 5),
        (["{images}", "--metrics", "psnr", "-o", "{images}", "--overwrite"], 5),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_code(run, folder, arguments, code):
    before = sorted(x.name for x in folder.iterdir())
    done = run(*(text.format(images=folder) for text in arguments))
    assert (done.code, done.stdout) == (code, ""), done.error
    assert sorted(x.name for x in folder.iterdir()) == before


def test_a_report_is_replaced_only_when_asked_to(run, folder, tmp_path):
    arguments = [folder, "--metrics", "psnr", "--limit", "1", "-o", tmp_path / "report"]
    assert run(*arguments).code == 0
    assert run(*arguments).code == 5
    assert run(*arguments, "--overwrite").code == 0


# The page's parts ----------------------------------------------------------------------------------------------------


def test_chosen_are_the_worst_first_whichever_way_is_better():
    values = {name: float(i) for i, name in enumerate("abcdefghi")}
    assert [*chosen(values, "higher", 2)] == ["a", "b", "d", "e", "h", "i"]
    assert [*chosen(values, "lower", 2)] == ["i", "h", "f", "e", "b", "a"]
    assert chosen({"a": 1.0}, "higher") == {"a": "worst"}


def test_differences_are_as_large_as_can_be_told_apart():
    def pair(amount: int):
        original = np.full((8, 8, 3), 100, np.uint8)
        return Shown("", original, original + np.uint8(amount), None, "")

    assert [difference_factor([pair(amount)]) for amount in (0, 3, 20, 100, 150)] == [32, 32, 4, 1, 1]
    assert difference_factor([]) == 1


def test_of_large_images_the_middle_is_shown(monkeypatch):
    monkeypatch.setattr(shown, "_SHOWN", 16)
    image = np.random.default_rng(0).integers(0, 256, (20, 12, 3), dtype=np.uint8)
    assert np.array_equal(image[shown.middle(image)], image[2:18])
