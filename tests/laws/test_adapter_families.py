"""Laws of families with a quantizer or networks of their own: out and back, whatever their size, and trained on."""

import pytest
import torch

import vqtok
from vqtok import adapters
from vqtok.adapters import FAMILIES
from vqtok.architecture import ModelCard, read_section
from vqtok.errors import MismatchError
from vqtok.loading import assemble
from vqtok.losses import Objective

CONV = {"type": "conv", "channels": 32, "residual_blocks": 1, "attention_levels": [], "z_channels": 8}
PIXELS = {"exif": "ignore", "alpha": "keep"}
FOREIGN = {"exif": "ignore", "alpha": "keep", "low": 0.1, "high": 0.9}


def grid(network, quantizer, decoder=None, **more):
    levels = len(network["multipliers"])
    spec = {**more.pop("preprocess", PIXELS), "multiple": 2 ** (levels - 1)}
    parts = {"encoder": network, "quantizer": quantizer, "decoder": decoder or network, "preprocess": spec}
    return {**parts, **more}


def conv(quantizer, **options):
    return grid({**CONV, **options}, quantizer)


def magvit2(bits, **options):
    return grid({"type": "magvit2", **options}, {"type": "lfq", "bits": bits, "endian": "little"})


def dvae(codes, dim, encoder, decoder=None):
    quantizer = {"type": "gumbel", "latent_dim": codes, "vocab_size": codes, "dim": dim}
    quantizer |= {"projection": False, "hard": False}
    networks = [{"type": "dvae", **options} for options in (encoder, decoder or encoder)]
    return grid(networks[0], quantizer, networks[1], output="logit-laplace", preprocess=FOREIGN)


GUMBEL = {"type": "gumbel", "latent_dim": 6, "vocab_size": 40, "dim": 6}
IBQ = {"type": "ibq", "dim": 6, "vocab_size": 40, "penalties": ["entropy", "diversity"]}
SMALL = {"channels": 32, "multipliers": [1, 2], "residual_blocks": 1}
TINY = {"channels": 8, "multipliers": [1, 2], "residual_blocks": 1}
MODELS = {
    "taming_gumbel": conv(GUMBEL, multipliers=[1, 2], attention_levels=[1]),
    "taming_gumbel, as many codes as channels": conv({**GUMBEL, "vocab_size": 6}, multipliers=[1, 2]),
    "taming_gumbel, other vectors than latents": conv({**GUMBEL, "latent_dim": 5}, multipliers=[1, 1, 1]),
    "taming_gumbel, four blocks": conv(GUMBEL, multipliers=[1], residual_blocks=4),
    "seed_voken_ibq": conv(IBQ, multipliers=[1, 2], attention_levels=[0], residual_blocks=4),
    "seed_voken_ibq, six codes of six": conv({**IBQ, "vocab_size": 6}, multipliers=[1, 3]),
    "open_magvit2_lfq": magvit2(10, **SMALL),
    "open_magvit2_lfq, 18 bits, four blocks": magvit2(18, **SMALL | {"residual_blocks": 4}),
    "open_magvit2_lfq, one level": magvit2(3, **SMALL | {"multipliers": [3]}),
    "open_magvit2_lfq, twelve levels": magvit2(3, **SMALL | {"multipliers": [1] * 12}),
    "openai_dvae": dvae(30, 12, TINY),
    "openai_dvae, vectors as wide as the first group": dvae(30, 16, TINY),
    "openai_dvae, four groups": dvae(12, 12, TINY | {"multipliers": [1, 2, 4, 8], "residual_blocks": 2}),
    "openai_dvae, another decoder": dvae(30, 12, TINY, {"channels": 4, "multipliers": [1, 3], "residual_blocks": 3}),
}


def family_of(name):
    return name.split(",")[0]


def made(name):
    torch.manual_seed(0)
    return assemble(read_section(ModelCard, {"architecture": MODELS[name]}, name)).eval()


def saved(folder, tokenizer, family):
    """Write a checkpoint in the publisher's names, and in its files where it has several."""
    tensors = adapters.export(tokenizer.inference_tensors(), family)
    parts = FAMILIES[family].parts
    if not parts:
        torch.save({"state_dict": tensors}, folder / "x.ckpt")
        return folder / "x.ckpt"
    for file, prefix in parts[-1].items():
        own = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
        torch.save(own, folder / file)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_what_is_exported_is_read_and_shapes_alone_say_what_it_is(name, tmp_path):
    tokenizer, family = made(name), family_of(name)
    path = saved(tmp_path, tokenizer, family)
    named = family if family == "seed_voken_ibq" else None  # whose names are taming's
    again = vqtok.load(path, family=named)
    assert again.card.architecture == tokenizer.card.architecture
    assert again.card.provenance["family"] == family
    ours = tokenizer.inference_tensors()
    assert all(torch.equal(x, ours[key]) for key, x in again.inference_tensors().items())


@pytest.mark.parametrize("name", [name for name in MODELS if "," not in name])
def test_a_loaded_model_trains_on(name, tmp_path):
    """Every weight moves, and the loss falls, as of a model that was built here."""
    tokenizer, family = made(name), family_of(name)
    again = vqtok.load(saved(tmp_path, tokenizer, family), family=family).train()
    before = {key: x.detach().clone() for key, x in again.named_parameters()}
    colours = torch.rand(2, 3, 1, 1) * (again.spec.high - again.spec.low) + again.spec.low
    pixels = colours.expand(-1, -1, 8, 8).contiguous()
    weights = {"l2": 1.0, "commitment": 0.25, "codebook": 0.25, "index": 0.25, "entropy": 0.01, "diversity": 0.01}
    optimizer = torch.optim.Adam(again.parameters(), lr=3e-3)
    values = []
    for _ in range(15):
        reconstruction = again(pixels)
        losses = {"l2": (reconstruction.pixels - pixels).square().mean(), **reconstruction.quantized.losses}
        objective = Objective({key: weights.get(key, 1e-4) for key in losses})
        optimizer.zero_grad()
        objective(losses).total.backward()
        optimizer.step()
        values.append(losses["l2"].item())
    still = [key for key, x in again.named_parameters() if torch.equal(x, before[key])]
    assert still == []
    assert sum(values[-3:]) < 0.9 * sum(values[:3])


def test_a_transposed_codebook_of_gumbel_is_refused(tmp_path):
    tokenizer = made("taming_gumbel")
    state = adapters.export(tokenizer.inference_tensors(), "taming_gumbel")
    state["quantize.embed.weight"] = state["quantize.embed.weight"].T.contiguous()
    torch.save(state, tmp_path / "x.ckpt")
    with pytest.raises(MismatchError, match="transposed"):
        vqtok.load(tmp_path / "x.ckpt")


def test_codes_that_were_renumbered_are_refused(tmp_path):
    """With the publisher's ``remap`` tokens count only the codes in use: other tokens than those of these weights."""
    tokenizer = made("taming_gumbel")
    state = adapters.export(tokenizer.inference_tensors(), "taming_gumbel")
    torch.save(state | {"quantize.used": torch.arange(7)}, tmp_path / "x.ckpt")
    with pytest.raises(MismatchError, match=r"left over 'quantize\.used' \(7,\)"):
        vqtok.load(tmp_path / "x.ckpt")


SPOILT = [
    ("taming_gumbel", "quantize.proj.weight", (40,)),
    ("taming_gumbel", "quantize.proj.weight", (40, 6, 3, 3)),
    ("taming_gumbel", "quantize.embed.weight", ()),
    ("taming_gumbel", "quantize.embed.weight", (41, 6)),
    ("open_magvit2_lfq", "encoder.conv_out.weight", (10,)),
    ("open_magvit2_lfq", "encoder.conv_out.weight", (70, 64, 1, 1)),
    ("open_magvit2_lfq", "encoder.conv_in.weight", (0, 3, 3, 3)),
    ("open_magvit2_lfq", "encoder.conv_in.weight", (24, 3, 3, 3)),
    ("open_magvit2_lfq", "decoder.up.1.block.0.conv1.weight", ()),
    ("open_magvit2_lfq", "decoder.adaptive.1.gamma.weight", (64, 9)),
    ("openai_dvae", "encoder.blocks.input.w", ()),
    ("openai_dvae", "encoder.blocks.output.conv.w", (29, 16, 1, 1)),
    ("openai_dvae", "decoder.blocks.input.w", (12, 30, 3, 3)),
    ("openai_dvae", "decoder.blocks.input.w", ()),
    ("openai_dvae", "encoder.blocks.group_1.block_1.res_path.conv_4.w", (7, 2, 1, 1)),
]


@pytest.mark.parametrize(("family", "name", "shape"), SPOILT, ids=str)
def test_a_tensor_of_another_shape_is_one_clear_error(family, name, shape, tmp_path):
    state = adapters.export(made(family).inference_tensors(), family) | {name: torch.zeros(shape)}
    if family == "openai_dvae":
        for net in ("encoder", "decoder"):
            own = {key.removeprefix(f"{net}."): x for key, x in state.items() if key.startswith(net)}
            torch.save(own, tmp_path / f"{net}_state_dict.pt")
    else:
        torch.save(state, tmp_path / "x.ckpt")
    with pytest.raises(MismatchError):
        vqtok.load(tmp_path)


@pytest.mark.parametrize(
    ("family", "config", "words"),
    [
        ("open_magvit2_lfq", {"n_embed": 2048, "embed_dim": 11}, "dim is 11, the tensors say 10.*vocab_size is 2048"),
        ("open_magvit2_lfq", {"ddconfig": {"ch_mult": [1, 2, 2]}}, "multipliers"),
        ("openai_dvae", {"n_hid": 16, "n_init": 128}, "channels is 16.*dim is 128"),
        ("openai_dvae", {"vocab_size": 8192, "n_blk_per_group": 2}, "residual_blocks is 2.*vocab_size is 8192"),
        ("taming_gumbel", {"n_embed": 41, "ddconfig": {"ch": 64}}, "channels is 64.*vocab_size is 41"),
    ],
    ids=str,
)
def test_a_configuration_of_another_model_is_refused(family, config, words, tmp_path):
    path = saved(tmp_path, made(family), family)
    with pytest.raises(MismatchError, match=words):
        vqtok.load(path, config=config)


def test_the_two_publishers_of_one_name_are_told_apart(tmp_path):
    """Open-MAGVIT2's VQModel is no VQGAN: its configuration beside other weights is refused."""
    path = saved(tmp_path, made("open_magvit2_lfq"), "open_magvit2_lfq")
    good = {"model": {"class_path": "src.Open_MAGVIT2.models.lfqgan_pretrain.VQModel", "init_args": {"n_embed": 1024}}}
    assert vqtok.load(path, config=good).vocab_size == 1024
    with pytest.raises(MismatchError, match="says seed_voken_ibq, the tensors open_magvit2_lfq"):
        vqtok.load(path, config={"model": {"class_path": "src.IBQ.models.ibqgan.IBQ", "init_args": {"n_embed": 1024}}})
