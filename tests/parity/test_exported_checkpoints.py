"""What vqtok loads or trains goes back to the publishers' layouts, and opens again to the same numbers bit for bit."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

import vqtok
from tests.parity.test_published_checkpoints import CASES, about, checkpoint, loaded, pixels
from vqtok.adapters import FAMILIES
from vqtok.cli import group
from vqtok.errors import ConfigError, MismatchError, OutputError, VqtokError

cases = pytest.mark.parametrize("case", CASES)
TORCH_ZIP = b"PK\x03\x04"


def named(case, suffix):
    """Return where a case goes: its own file name for families of several files, else one with that suffix."""
    return "folder" if FAMILIES[about(case)["family"]].parts else f"model{suffix}"


def same_numbers(one, other, x):
    with torch.inference_mode():
        assert torch.equal(one.latents(x), other.latents(x))
        tokens = one.encode(x)
        assert torch.equal(tokens.ids, other.encode(x).ids)
        if isinstance(one, vqtok.DynamicTokenizer):
            assert torch.equal(one.decode_features(tokens), other.decode_features(tokens))
            return
        try:
            decoded = one.decode(tokens)
        except VqtokError:  # published without a decoder
            return
        assert torch.equal(decoded, other.decode(tokens))


@cases
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_an_exported_checkpoint_gives_the_same_numbers(case, suffix, tmp_path):
    tokenizer, family = loaded(case), about(case)["family"]
    path = tmp_path / named(case, suffix)
    vqtok.export(tokenizer, path, family, config=about(case)["config"])
    again = vqtok.load(path, family=family, config=about(case)["config"])
    assert again.card.architecture == tokenizer.card.architecture
    assert again.fingerprint == tokenizer.fingerprint
    same_numbers(tokenizer, again, pixels(case))
    if path.suffix == suffix:
        assert path.read_bytes().startswith(TORCH_ZIP) == (suffix == ".ckpt")


@cases
def test_the_command_goes_there_and_back(case, tmp_path):
    """Checkpoint, model folder, checkpoint, model folder: both folders are equal byte for byte but for provenance."""
    family, folder, back = about(case)["family"], tmp_path / "one", tmp_path / named(case, ".pt")
    (config := tmp_path / "said.json").write_text(json.dumps(about(case)["config"]))
    said = ["--config", config] if about(case)["config"] else []
    to_config = ["--to-config", config] if said else []
    run("convert", "model", checkpoint(case), folder, "--family", family, *said)
    run("convert", "model", folder, back, "--to", family, *to_config)
    last = tmp_path / "two"
    run("convert", "model", back, last, "--family", family, *said)
    assert (folder / "model.safetensors").read_bytes() == (last / "model.safetensors").read_bytes()
    one, two = (json.loads((x / "config.json").read_text()) for x in (folder, last))
    assert one["architecture"] == two["architecture"]
    same_numbers(loaded(case), vqtok.load(last), pixels(case))


def run(*words):
    result = CliRunner().invoke(group, list(map(str, words)))
    if result.exception:
        raise result.exception
    return result


@pytest.fixture(scope="module")
def trained():
    """A native model with numbers of its own in every tensor."""
    torch.manual_seed(5)
    tokenizer = vqtok.build("vqgan-tiny", channels=32, groups=32, metric="l2").eval()
    for parameter in tokenizer.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return tokenizer


def test_a_native_model_is_read_by_torch_as_the_publisher_reads_it(trained, tmp_path):
    """taming: ``torch.load(path)["state_dict"]``; LlamaGen: under ``model``; diffusers: flat, attention as layers."""
    vqtok.export(trained, tmp_path / "a.ckpt", "taming_vqgan")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(state["quantize.embedding.weight"], trained.quantizer.codebook)
    assert torch.equal(state["encoder.conv_in.weight"], trained.encoder.conv_in.weight)
    assert state["encoder.mid.attn_1.q.weight"].ndim == 4
    vqtok.export(trained, tmp_path / "c.safetensors", "taming_vqgan")
    with safe_open(tmp_path / "c.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert set(file.keys()) == set(state)
        assert all(torch.equal(file.get_tensor(name), x) for name, x in state.items())


def test_a_native_model_opens_again_from_another_publishers_layout(trained, tmp_path):
    x = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    vqtok.export(trained, tmp_path / "b.safetensors", "diffusers_vqmodel")
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert file.get_tensor("encoder.mid_block.attentions.0.to_q.weight").ndim == 2
    same_numbers(trained, vqtok.load(tmp_path / "b.safetensors"), x)


def test_directions_are_llamagens(tmp_path):
    tokenizer = vqtok.build("vqgan-tiny", channels=32, groups=32, metric="cosine").eval()
    vqtok.export(tokenizer, tmp_path / "vq.pt", "llamagen_vq")
    state = torch.load(tmp_path / "vq.pt", weights_only=True)["model"]
    assert torch.equal(
        state["decoder.conv_blocks.0.res.0.conv1.weight"], tokenizer.decoder.levels[2].blocks[0].conv1.weight
    )
    same_numbers(tokenizer, vqtok.load(tmp_path / "vq.pt"), torch.rand(2, 3, 32, 48) * 2 - 1)


@pytest.mark.parametrize(("family", "part"), [("llamagen_vq", "codes"), ("hf_janus_vq", "pixels")])
def test_a_family_that_computes_otherwise_with_the_same_weights_is_refused(trained, family, part, tmp_path):
    """LlamaGen compares directions, Janus decodes unit vectors: names and shapes fit, numbers would not."""
    with pytest.raises(MismatchError, match=f"with the same weights its {part} differ"):
        vqtok.export(trained, tmp_path / "x.pt", family)
    assert list(tmp_path.iterdir()) == []


def test_pixels_of_another_range_are_refused(trained, tmp_path):
    card = trained.card
    spec = card.architecture.preprocess.model_copy(update={"low": 0.0})
    architecture = card.architecture.model_copy(update={"preprocess": spec})
    trained.card = card.model_copy(update={"architecture": architecture})
    try:
        with pytest.raises(MismatchError, match=r"low is 0.0 here and -1.0 there"):
            vqtok.export(trained, tmp_path / "x.pt", "taming_vqgan")
    finally:
        trained.card = card


def test_refusals_name_what_to_do_and_leave_nothing(trained, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'taming_vqgan'"):
        vqtok.export(trained, tmp_path / "x.ckpt", "tamin_vqgan")
    with pytest.raises(ConfigError, match=r"ending in \.safetensors"):
        vqtok.export(trained, tmp_path / "x.npz", "taming_vqgan")
    with pytest.raises(ConfigError, match="layout of vit_vqgan does not fit"):
        vqtok.export(trained, tmp_path / "x.ckpt", "vit_vqgan")
    with pytest.raises(MismatchError, match="configuration and weights of one model"):
        vqtok.export(trained, tmp_path / "x.ckpt", "taming_vqgan", config={"embed_dim": 7})
    hand_made = vqtok.Tokenizer(trained.encoder, trained.quantizer, trained.decoder, trained.spec)
    with pytest.raises(ConfigError, match="put together by hand"):
        vqtok.export(hand_made, tmp_path / "x.ckpt", "taming_vqgan")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays_unless_it_shall_be_replaced(trained, tmp_path):
    (path := tmp_path / "x.ckpt").write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists already"):
        vqtok.export(trained, path, "taming_vqgan")
    assert path.read_bytes() == b"mine"
    vqtok.export(trained, path, "taming_vqgan", overwrite=True)
    first = path.read_bytes()
    vqtok.export(trained, path, "taming_vqgan", overwrite=True)
    assert path.read_bytes() == first, "equal content gives equal bytes"
    assert [x.name for x in tmp_path.iterdir()] == ["x.ckpt"]


def test_families_of_several_files_get_a_folder(trained, tmp_path, monkeypatch):
    from dataclasses import replace

    parts = ({"all.pkl": ""}, {"rest.pt": "", "encoder.safetensors": "encoder."})
    split = replace(FAMILIES["taming_vqgan"], name="split", parts=parts, anchor="encoder.conv_in.weight")
    monkeypatch.setattr(vqtok.adapters, "FAMILIES", {**FAMILIES, "split": split})
    monkeypatch.setattr(vqtok.adapters.checkpoint, "FAMILIES", vqtok.adapters.FAMILIES)
    vqtok.export(trained, tmp_path / "folder", "split")
    assert sorted(x.name for x in (tmp_path / "folder").iterdir()) == ["encoder.safetensors", "rest.pt"]
    x = torch.from_numpy(np.float32(np.random.default_rng(0).uniform(-1, 1, (1, 3, 32, 32))))
    same_numbers(trained, vqtok.load(tmp_path / "folder", family="split"), x)


def test_the_command_refuses_in_one_line_with_its_exit_code(trained, tmp_path):
    trained.save(tmp_path / "m")
    wrong = {
        ("nothing", "x"): 4,
        ("m", "x.ckpt"): 2,
        ("m", "x.ckpt", "--to", "tamin_vqgan"): 2,
        ("m", "x.pt", "--to", "vit_vqgan"): 2,
        ("m", "x.pt", "--to", "llamagen_vq"): 7,
        ("m", "m"): 5,
        ("m", "missing/x.pt", "--to", "taming_vqgan"): 5,
    }
    for (source, target, *more), code in wrong.items():
        with pytest.raises(VqtokError, match=r"expected|unknown|cannot write|does not fit|exists") as caught:
            run("convert", "model", tmp_path / source, tmp_path / target, *more)
        assert caught.value.exit_code == code, (source, target, more)
    assert [x.name for x in tmp_path.iterdir()] == ["m"]


def test_the_command_tells_what_it_did_as_json(trained, tmp_path):
    trained.save(tmp_path / "m")
    result = run("convert", "model", tmp_path / "m", tmp_path / "x.pt", "--to", "taming_vqgan", "--json")
    told = json.loads(result.stdout)
    assert told["fingerprint"] == trained.fingerprint
    assert told["outputs"] == [str(tmp_path / "x.pt")]


def test_a_run_named_model_is_converted_by_its_path(tmp_path):
    with pytest.raises(VqtokError, match="expected a run"):
        run("convert", "./model", tmp_path / "x.npz")
