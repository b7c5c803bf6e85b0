"""Foreign checkpoints that are hostile, damaged or of another model: one error each, and nothing of them is run."""

import collections
import io
import os
import pickle
import struct
import sys
import types
import warnings
import zipfile

import pytest
import torch

import vqtok
from vqtok import adapters
from vqtok.errors import ConfigError, InputError, IntegrityError, MismatchError, VqtokError

CONV = {"channels": 32, "multipliers": [1, 2], "residual_blocks": 1, "attention_levels": [1], "z_channels": 8}
DDCONFIG = {
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "z_channels": 8,
    "resolution": 32,
    "attn_resolutions": [16],
}


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return vqtok.build("vqgan-f16-1024", vocab_size=24, dim=6, multiple=2, **CONV).eval()


@pytest.fixture
def state(tokenizer):
    exported = adapters.export(tokenizer.inference_tensors(), "taming_vqgan")
    return {name: tensor.clone() for name, tensor in exported.items()}


def same(came, tokenizer):
    ours = tokenizer.inference_tensors()
    return all(torch.equal(tensor, ours[name]) for name, tensor in came.inference_tensors().items())


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


# What real files are like -----------------------------------------------------------------------------------------

WRAPS = {
    "plain": lambda state: state,
    "ordered": collections.OrderedDict,
    "lightning": lambda state: {"state_dict": state, "epoch": 3, "optimizer_states": [{"state": {0: torch.zeros(3)}}]},
    "ema": lambda state: {"model": {"no.such": torch.zeros(1)}, "ema": state},
    "no_ema": lambda state: {"model": state, "ema": None, "args": {"lr": 1e-4}},
    "twice": lambda state: {"state_dict": {"module": state}},
    "module": lambda state: {f"module.{name}": x for name, x in state.items()},
    "latent_diffusion": lambda state: {
        "state_dict": {f"first_stage_model.{name}": x for name, x in state.items()} | {"model.out.bias": torch.ones(2)}
    },
    "larger": lambda state: (
        {f"model.vqmodel.{name}": x for name, x in state.items()} | {"lm_head.weight": torch.ones(2)}
    ),
    "losses": lambda state: state | {"loss.discriminator.main.3.num_batches_tracked": torch.tensor(7)},
    "parameters": lambda state: {name: torch.nn.Parameter(x) for name, x in state.items()},
    "views": lambda state: {name: torch.stack([x, x])[1] for name, x in state.items()},
    "transposed": lambda state: {name: x.transpose(0, -1).contiguous().transpose(0, -1) for name, x in state.items()},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", WRAPS)
def test_wherever_publishers_keep_the_state_dict_it_is_found(wrap, legacy, state, tokenizer, tmp_path):
    path = saved(tmp_path / "x.ckpt", WRAPS[wrap](state), _use_new_zipfile_serialization=not legacy)
    assert same(vqtok.load(path), tokenizer)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_floats_become_float32(dtype, state, tokenizer, tmp_path):
    from safetensors.torch import save_file

    narrow = {name: x.to(dtype) for name, x in state.items()}
    save_file(narrow, tmp_path / "x.safetensors")
    for path in (saved(tmp_path / "x.pt", narrow), tmp_path / "x.safetensors"):
        came = adapters.export(vqtok.load(path).inference_tensors(), "taming_vqgan")
        assert all(torch.equal(x, narrow[name].float()) and x.dtype == torch.float32 for name, x in came.items())


@pytest.fixture
def foreign_module(monkeypatch):
    """A module that is there when a file is written, and not when it is read."""

    def make(name, attribute):
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
        made = type(attribute, (), {"__module__": name})
        setattr(sys.modules[name], attribute, made)
        return made

    return make


def test_callbacks_by_class_are_collected_and_never_imported(foreign_module, state, tokenizer, tmp_path, monkeypatch):
    callback = foreign_module("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    thing = callback()
    thing.best = 1.5
    path = saved(tmp_path / "x.ckpt", {"callbacks": {callback: {"best": thing}}, "state_dict": state})
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, name)
    assert same(vqtok.load(path), tokenizer)
    assert not any(name.startswith("pytorch_lightning") for name in sys.modules)


def test_a_configuration_beside_the_checkpoint_is_found(state, tokenizer, tmp_path):
    path = saved(tmp_path / "last.ckpt", state)
    (tmp_path / "last.yaml").write_text("model:\n  target: taming.models.vqgan.VQModel\n  params: {n_embed: 24}\n")
    assert same(vqtok.load(path), tokenizer)
    assert same(vqtok.load(tmp_path), tokenizer)
    (tmp_path / "last.yaml").write_text("model:\n  target: taming.models.vqgan.VQModel\n  params: {n_embed: 25}\n")
    with pytest.raises(MismatchError, match="vocab_size is 25, the tensors say 24"):
        vqtok.load(path)


# Pickles that would do something ----------------------------------------------------------------------------------


class Bomb:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class State(dict):
    """A state dict with a reduction of its own."""

    def __reduce__(self):
        return os.system, ("touch BOMB",)


def gadget(name):
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules[module], attribute)


BOMBS = {
    "system": lambda: Bomb(os.system, "touch BOMB"),
    "eval": lambda: Bomb(eval, "open('BOMB', 'w')"),
    "getattr": lambda: Bomb(getattr, "x", "upper"),
    "import": lambda: Bomb(__import__, "antigravity"),
    "open": lambda: Bomb(io.open, "BOMB", "w"),
    "reduce": State,
    "nested_pickle": lambda: Bomb(torch.storage._load_from_bytes, pickle.dumps(Bomb(os.system, "touch BOMB"))),
    "rebuild_from_type": lambda: Bomb(
        torch._tensor._rebuild_from_type_v2, os.system, torch.Tensor, ("touch BOMB",), None
    ),
    "sparse": lambda: Bomb(torch._utils._rebuild_sparse_tensor, torch.sparse_coo, ()),
    "hub": lambda: Bomb(torch.hub.load, "x/y", "z"),
    "class": lambda: Bomb(collections.Counter, ("a",)),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["beside", "inside"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_nothing_is_run(bomb, place, legacy, state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": state, "x": BOMBS[bomb]()} if place == "beside" else state | {"x": BOMBS[bomb]()}
    path = saved(tmp_path / "x.ckpt", content, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(IntegrityError, match="nothing of it was run"):
        vqtok.load(path)
    assert not (tmp_path / "BOMB").exists()
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickle_is_refused_whatever_its_protocol(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(Bomb(os.system, "touch BOMB"), protocol=protocol))
    with pytest.raises(VqtokError):
        vqtok.load(tmp_path / "x.pkl")
    assert not (tmp_path / "BOMB").exists()


def rewritten(path, change):
    """Rewrite a zip with its pickle changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)


def tensor_pickle(shape, stride, offset=0, length=4):
    """Write the pickle of a state dict with one tensor that a storage of 4 numbers has no room for."""
    storage = Bomb(None)
    del storage
    out = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, "0", "cpu", length) if obj == "STORAGE" else None

    rebuild = Bomb(torch._utils._rebuild_tensor_v2, "STORAGE", offset, shape, stride, False, collections.OrderedDict())
    Pickler(out, protocol=2).dump({"encoder.conv_in.weight": rebuild})
    return out.getvalue()


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [((5,), (1,), 0), ((4,), (1,), 1), ((2,), (4,), 0), ((1 << 40,), (0,), 0), ((2,), (-1,), 1), ((4,), (1, 1), 0)],
)
def test_views_outside_their_storage_are_refused(shape, stride, offset, tmp_path):
    path = saved(tmp_path / "x.pt", {"a": torch.zeros(4)})
    rewritten(path, lambda _: tensor_pickle(shape, stride, offset))
    with pytest.raises(IntegrityError):
        vqtok.load(path)


def test_pickles_that_make_no_sense_are_refused(tmp_path):
    """Any byte of a pickle may be any other; whatever comes, it is an error of ours or the same weights."""
    path = saved(tmp_path / "x.pt", {"a": torch.zeros(4), "b": [1, (2, "c")]})
    with zipfile.ZipFile(path) as archive:
        good = archive.read("x/data.pkl")
    for at in range(0, len(good), 3):
        for value in (0, 0x28, 0x52, 0x62, 0x81, 0xFF):
            rewritten(path, lambda _, at=at, value=value: good[:at] + bytes([value]) + good[at + 1 :])
            with pytest.raises(VqtokError):
                vqtok.load(path)


# Damaged files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_files_that_were_cut_off_are_refused(kind, state, tmp_path):
    from safetensors.torch import save

    path = tmp_path / f"x.{'safetensors' if kind == 'safetensors' else 'ckpt'}"
    if kind == "safetensors":
        path.write_bytes(save(state))
    else:
        saved(path, state, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for size in [0, 1, 7, 8, 20, 100, 1000, *range(2000, len(whole), len(whole) // 11), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(VqtokError) as caught:
            vqtok.load(path)
        assert isinstance(caught.value, InputError | IntegrityError)


def test_a_flipped_bit_in_a_zip_is_found(state, tmp_path):
    path = saved(tmp_path / "x.pt", state)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = max(archive.infolist(), key=lambda info: info.file_size)
    data[info.header_offset + info.file_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="another checksum"):
        vqtok.load(path)


STRANGERS = {
    "text": (b"not a checkpoint, but long enough to be one", InputError),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", InputError),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", InputError),
    "pickle_of_a_number": (pickle.dumps(1), IntegrityError),
    "header_too_long": (struct.pack("<Q", 1 << 40) + b"{}", IntegrityError),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_files_of_other_kinds_are_refused(kind, tmp_path):
    data, error = STRANGERS[kind]
    (tmp_path / "x.ckpt").write_bytes(data)
    with pytest.raises(error, match=r"x\.ckpt"):
        vqtok.load(tmp_path / "x.ckpt")


def test_zips_of_other_content_are_refused(state, tmp_path):
    for members in ({"a.txt": b"x"}, {"x/data.pkl": pickle.dumps({}), "x/code/__torch__.py": b"import os"}):
        with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        with pytest.raises(InputError):
            vqtok.load(tmp_path / "x.pt")
    with pytest.raises(InputError, match="nothing of that name"):
        vqtok.load(tmp_path / "missing.ckpt")


def test_compressed_members_are_refused(state, tmp_path):
    path = saved(tmp_path / "x.pt", state)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(IntegrityError, match=r"expected \d+ bytes for storage"):
        vqtok.load(path)


# Weights of another model -----------------------------------------------------------------------------------------


def test_all_differences_are_said_at_once(state, tmp_path):
    del state["decoder.conv_out.bias"], state["encoder.mid.attn_1.q.weight"]
    state["decoder.norm_out.weight"] = torch.zeros(7)
    state["decoder.extra.weight"] = torch.zeros(3)
    with pytest.raises(MismatchError) as caught:
        vqtok.load(saved(tmp_path / "x.ckpt", state))
    for words in (
        "missing 'decoder.conv_out.bias'",
        "'encoder.mid.attn_1.q.bias'",
        "'decoder.norm_out.weight' of shape (7,)",
        "left over 'decoder.extra.weight' (3,)",
    ):
        assert words in str(caught.value)


def test_a_transposed_codebook_is_refused(state, tmp_path):
    state["quantize.embedding.weight"] = state["quantize.embedding.weight"].T.contiguous()
    with pytest.raises(MismatchError, match="transposed"):
        vqtok.load(saved(tmp_path / "x.ckpt", state))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value, state, tmp_path):
    state["decoder.conv_out.bias"][1] = value
    with pytest.raises(IntegrityError, match=r"'decoder\.conv_out\.bias' holds NaN or infinity"):
        vqtok.load(saved(tmp_path / "x.ckpt", state))


def test_weights_that_are_no_floats_are_refused(state, tmp_path):
    state["decoder.conv_out.bias"] = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(IntegrityError, match="floating-point"):
        vqtok.load(saved(tmp_path / "x.ckpt", state))


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"ddconfig": {**DDCONFIG, "ch": 64}}, MismatchError, "channels is 64, the tensors say 32"),
        ({"ddconfig": {**DDCONFIG, "ch_mult": [1, 2, 2]}}, MismatchError, "multipliers"),
        ({"ddconfig": {**DDCONFIG, "attn_resolutions": [32]}}, MismatchError, "attention_resolutions"),
        ({"ddconfig": DDCONFIG, "n_embed": 23, "embed_dim": 5}, MismatchError, "dim is 5.*vocab_size is 23"),
        ({"nothing": 1}, ConfigError, "some of ddconfig.ch"),
        (
            {"_class_name": "VQModel", "num_vq_embeddings": 24},
            MismatchError,
            "says diffusers_vqmodel, the tensors taming",
        ),
        ("missing.yaml", InputError, "nothing is there"),
    ],
    ids=str,
)
def test_a_configuration_of_another_model_is_refused(config, error, words, state, tmp_path):
    path = saved(tmp_path / "x.ckpt", state)
    good = vqtok.load(path, config={"ddconfig": DDCONFIG, "n_embed": 24, "embed_dim": 6})
    assert good.vocab_size == 24
    with pytest.raises(error, match=words):
        vqtok.load(path, config=config)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "x: !!python/object/apply:os.system [touch BOMB]", "\0"])
def test_configurations_that_are_none_are_refused(text, state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        vqtok.load(saved(tmp_path / "x.ckpt", state), config="c.yaml")
    assert not (tmp_path / "BOMB").exists()


def test_a_family_that_is_not_the_files_is_refused(state, tmp_path):
    path = saved(tmp_path / "x.ckpt", state)
    with pytest.raises(MismatchError, match=r"of llamagen_vq, .* but of taming_vqgan"):
        vqtok.load(path, family="llamagen_vq")
    with pytest.raises(ConfigError, match="did you mean 'taming_vqgan'"):
        vqtok.load(path, family="taming-vqgan")
    with pytest.raises(InputError, match="fit none"):
        vqtok.load(saved(tmp_path / "y.ckpt", {"a.weight": torch.zeros(2)}))


@pytest.fixture(scope="module")
def four_blocks():
    torch.manual_seed(0)
    tokenizer = vqtok.build("vqgan-f16-1024", vocab_size=24, dim=6, multiple=2, **{**CONV, "residual_blocks": 4})
    return tokenizer.eval()


@pytest.mark.parametrize("averages", [False, True])
def test_where_names_cannot_tell_both_candidates_are_named(averages, four_blocks, tokenizer, tmp_path):
    """With four blocks, or with averaged weights, names are IBQ's as well, whose tokens would be others."""
    whose = tokenizer if averages else four_blocks
    state = adapters.export(whose.inference_tensors(), "taming_vqgan")
    if averages:
        state |= {f"model_ema.{name.replace('.', '')}": torch.ones_like(x) for name, x in state.items()}
    path = saved(tmp_path / "x.ckpt", {"state_dict": state})
    with pytest.raises(ConfigError, match=r"taming_vqgan and seed_voken_ibq.*give family="):
        vqtok.load(path)
    assert same(vqtok.load(path, family="taming_vqgan"), whose)
    assert same(
        vqtok.load(path, config={"model": {"target": "taming.models.vqgan.VQModel", "params": {"n_embed": 24}}}), whose
    )
    (tmp_path / "x.yaml").write_text("model: {class_path: src.IBQ.models.ibqgan.IBQ, init_args: {n_embed: 24}}")
    for ibq in (vqtok.load(path), vqtok.load(path, family="seed_voken_ibq")):
        assert ibq.card.architecture.quantizer.type == "ibq"
        assert averages == all(bool((x == 1).all()) for x in ibq.inference_tensors().values())
        assert averages or same(ibq, whose)


def averages_of(state):
    return {f"model_ema.{name.replace('.', '')}": x + 1 for name, x in state.items()}


def test_averages_of_some_tensors_are_refused(state, tmp_path):
    """Half a model as it was trained and half its average is no model."""
    averages = averages_of(state)
    for name in ("encoder.conv_in.bias", "quantize.embedding.weight"):
        del averages[f"model_ema.{name.replace('.', '')}"]
    path = saved(tmp_path / "x.ckpt", {"state_dict": state | averages})
    with pytest.raises(MismatchError, match=r"none of 2: encoder\.conv_in\.bias, quantize\.embedding\.weight"):
        vqtok.load(path, family="seed_voken_ibq")


def test_an_average_of_nothing_is_left_over(state, tmp_path):
    beside = {
        "model_ema.decay": torch.tensor(0.999),
        "model_ema.num_updates": torch.tensor(-1, dtype=torch.int32),
        "model_ema.lossdiscriminatormain0weight": torch.zeros(2),
    }
    path = saved(tmp_path / "x.ckpt", {"state_dict": state | averages_of(state) | beside})
    loaded = adapters.export(vqtok.load(path, family="seed_voken_ibq").inference_tensors(), "seed_voken_ibq")
    assert all(torch.equal(loaded[name], x + 1) for name, x in state.items())
    saved(path, {"state_dict": state | averages_of(state) | {"model_ema.encoderextraweight": torch.zeros(2)}})
    with pytest.raises(MismatchError, match=r"left over 'model_ema\.encoderextraweight'"):
        vqtok.load(path, family="seed_voken_ibq")


@pytest.mark.parametrize("wrong", [{"entropy_temperature": 0}, {"entropy_temperature": "cold"}, {"n_embed": 25}])
def test_options_that_ibq_does_not_have_are_refused(wrong, state, tmp_path):
    path = saved(tmp_path / "x.ckpt", state)
    good = {"entropy_temperature": 0.5, "use_entropy_loss": False, "n_embed": 24}
    quantizer = vqtok.load(path, family="seed_voken_ibq", config=good).card.architecture.quantizer
    assert (quantizer.entropy_temperature, quantizer.penalties) == (0.5, ())
    with pytest.raises(VqtokError, match=f"{next(iter(wrong.values()))}"):
        vqtok.load(path, family="seed_voken_ibq", config=good | wrong)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_modules_that_were_pickled_whole_are_read_without_their_classes(legacy, monkeypatch, tmp_path):
    """DALL-E's files are modules of classes that need not be there; torch's older format has their source beside."""
    torch.manual_seed(0)
    tokenizer = vqtok.build("dvae-tiny", vocab_size=30, latent_dim=30, dim=8, channels=8).eval()
    for name in ("dall_e", "dall_e.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    made = type("Conv2d", (torch.nn.Module,), {"__module__": "dall_e.utils"})
    monkeypatch.setattr(sys.modules["dall_e.utils"], "Conv2d", made, raising=False)
    roots = {"encoder": torch.nn.Module(), "decoder": torch.nn.Module()}
    for name, tensor in adapters.export(tokenizer.inference_tensors(), "openai_dvae").items():
        *path, leaf = name.split(".")
        module = roots[path[0]]
        for part in path[1:]:
            if part not in module._modules:
                module.add_module(part, made())
            module = module._modules[part]
        module.register_parameter(leaf, torch.nn.Parameter(tensor.clone()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch looks for sources of classes that have none
        for name, module in roots.items():
            torch.save(module, tmp_path / f"{name}.pkl", _use_new_zipfile_serialization=not legacy)
    monkeypatch.undo()
    for path in (tmp_path, tmp_path / "encoder.pkl", tmp_path / "decoder.pkl"):
        assert same(vqtok.load(path), tokenizer)
    assert "dall_e" not in sys.modules


def test_chameleons_whole_checkpoint_has_tamings_names_and_its_own_pixels(state, tokenizer, tmp_path):
    path = saved(tmp_path / "vqgan.ckpt", state)
    assert vqtok.load(path).spec.high == 1.0
    chameleon = vqtok.load(path, family="hf_chameleon_vq")
    assert same(chameleon, tokenizer)
    white = chameleon.preprocess(torch.full((2, 2, 3), 255, dtype=torch.uint8).numpy())
    assert white.unique().item() == pytest.approx(255 * 0.0078 - 1, abs=1e-7)


def test_amuseds_model_takes_pixels_from_zero(tmp_path):
    plain = vqtok.build("vqgan-f16-1024", vocab_size=24, dim=6, multiple=2, middle_attention=False, **CONV)
    path = saved(tmp_path / "x.bin", adapters.export(plain.inference_tensors(), "diffusers_vqmodel"))
    assert vqtok.load(path).spec.low == 0.0
    assert vqtok.load(path, config={"lookup_from_codebook": False, "norm_num_groups": 32}).spec.low == -1.0
    with pytest.raises(ConfigError, match="norm_type"):
        vqtok.load(path, config={"norm_type": "spatial"})
    other = vqtok.load(path, config={"norm_num_groups": 16})
    assert other.card.architecture.encoder.groups == other.card.architecture.decoder.groups == 16


def test_two_checkpoints_in_one_folder_need_a_choice(state, tmp_path):
    saved(tmp_path / "a.ckpt", state)
    saved(tmp_path / "b.ckpt", state)
    with pytest.raises(ConfigError, match=r"a\.ckpt, b\.ckpt"):
        vqtok.load(tmp_path)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("x.ckpt", "model/config.json"):
        os.mkfifo(tmp_path / name)
    for path in (tmp_path / "x.ckpt", tmp_path / "model"):
        with pytest.raises(InputError, match="pipe"):
            vqtok.load(path)
