"""Layouts of published checkpoints in sizes that no case has: written out, opened, exported, trained, refused.

Odd widths, stacks of no or eleven blocks, decoders of their own width: what a publisher's class can be made with.
"""

import pytest
import torch

import vqtok
from vqtok import adapters
from vqtok.adapters import FAMILIES
from vqtok.adapters.family import Tensors
from vqtok.adapters.rules import apply, invert
from vqtok.errors import ConfigError, MismatchError


def publishers_vqvae2(channels, blocks, inner, dim, codes, seed=0):
    """A state dict as rosinality's class of these sizes has it: names and shapes written out, numbers at random."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {}

    def layer(name, out, into, kernel, transposed=False):
        shapes[f"{name}.weight"] = (into, out, kernel, kernel) if transposed else (out, into, kernel, kernel)
        shapes[f"{name}.bias"] = (out,)

    def stack(name, first):
        for i in range(first, first + blocks):
            layer(f"{name}.{i}.conv.1", inner, channels, 3)
            layer(f"{name}.{i}.conv.3", channels, inner, 1)

    half = channels // 2
    layer("enc_b.blocks.0", half, 3, 4)
    layer("enc_b.blocks.2", channels, half, 4)
    layer("enc_b.blocks.4", channels, channels, 3)
    stack("enc_b.blocks", 5)
    layer("enc_t.blocks.0", half, channels, 4)
    layer("enc_t.blocks.2", channels, half, 3)
    stack("enc_t.blocks", 3)
    layer("quantize_conv_t", dim, channels, 1)
    layer("dec_t.blocks.0", channels, dim, 3)
    stack("dec_t.blocks", 1)
    layer(f"dec_t.blocks.{blocks + 2}", dim, channels, 4, transposed=True)
    layer("quantize_conv_b", dim, dim + channels, 1)
    layer("upsample_t", dim, dim, 4, transposed=True)
    layer("dec.blocks.0", channels, 2 * dim, 3)
    stack("dec.blocks", 1)
    layer(f"dec.blocks.{blocks + 2}", half, channels, 4, transposed=True)
    layer(f"dec.blocks.{blocks + 4}", 3, half, 4, transposed=True)
    shapes |= {f"quantize_{x}.{name}": (dim, codes) for x in "tb" for name in ("embed", "embed_avg")}
    shapes |= {f"quantize_{x}.cluster_size": (codes,) for x in "tb"}
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


# Twelve blocks: numbers of two digits, and a layer behind the stack whose number is a block's elsewhere.
@pytest.mark.parametrize("sizes", [(7, 12, 3, 5, 9), (4, 0, 32, 6, 6), (8, 1, 8, 8, 16)], ids=str)
def test_vqvae2_of_other_sizes_is_opened_goes_back_and_learns_on(sizes, tmp_path):
    state = publishers_vqvae2(*sizes)
    torch.save({f"module.{name}": x for name, x in state.items()}, tmp_path / "vqvae.pt")
    tokenizer = vqtok.load(tmp_path / "vqvae.pt")
    exported = adapters.export(tokenizer.inference_tensors(), "vqvae2")
    assert exported.keys() == {name for name in state if not name.endswith(("cluster_size", "embed_avg"))}
    assert all(torch.equal(exported[name], state[name]) for name in exported)
    words = dict(zip(("channel", "n_res_block", "n_res_channel", "embed_dim", "n_embed"), sizes, strict=True))
    said = vqtok.load(tmp_path / "vqvae.pt", config={"in_channel": 3, "decay": 0.9, **words})
    assert said.card.architecture.quantizer.decay == 0.9
    with pytest.raises(MismatchError, match="channels is 6"):
        vqtok.load(tmp_path / "vqvae.pt", config={**words, "channel": 6})
    image = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    before = tokenizer.levels.top.codebook.clone()
    out = tokenizer.train()(image)
    (out.pixels.sub(image).square().mean() + out.quantized.losses["commitment"]).backward()
    assert all(bool(x.grad.any()) for name, x in tokenizer.network.named_parameters() if name.endswith("weight"))
    used = torch.unique(out.quantized.codes[..., 0])
    assert not torch.equal(tokenizer.levels.top.codebook[used], before[used])


def test_vqvae2_with_a_codebook_the_other_way_round_or_other_pixels_is_refused(tmp_path):
    state = publishers_vqvae2(8, 1, 8, 5, 9)
    state["quantize_t.embed"] = state["quantize_t.embed"].T.contiguous()
    torch.save(state, tmp_path / "turned.pt")
    with pytest.raises(MismatchError, match="transposed"):
        vqtok.load(tmp_path / "turned.pt")
    state = publishers_vqvae2(8, 1, 8, 5, 9)
    state["enc_b.blocks.0.weight"] = state["enc_b.blocks.0.weight"][:, :1].clone()
    state["stranger"] = state.pop("upsample_t.bias")
    torch.save(state, tmp_path / "grey.pt")
    with pytest.raises(MismatchError, match=r"(?s)missing 'upsample_t.bias'.*left over 'stranger'.*\(4, 1, 4, 4\)"):
        vqtok.load(tmp_path / "grey.pt")


class Lavit:
    """Three state dicts as LaVIT's classes have them; each of eva, tok and dec is width, depth and hidden width."""

    def __init__(self, eva, tok, dec, patch, size, codes, dim, features):
        self.generator = torch.Generator().manual_seed(0)
        patches, width = (size // patch) ** 2, eva[0]
        self.eva = {"cls_token": self.fresh(1, 1, width), "pos_embed": self.fresh(1, 1 + patches, width)}
        self.eva |= {"patch_embed.proj.weight": self.fresh(width, 3, patch, patch)}
        self.eva |= {"patch_embed.proj.bias": self.fresh(width)}
        self.eva |= self.norm("norm", width) | self.linear("head", 7, width) | self.blocks("blocks", *eva, "attn")
        self.tok = self.norm("token_predictor.in_conv.0", width) | self.linear(
            "token_predictor.in_conv.1", width, width
        )
        for layer, to, into in ((0, width // 2, width), (2, width // 4, width // 2), (4, 2, width // 4)):
            self.tok |= self.linear(f"token_predictor.out_conv.{layer}", to, into)
        self.tok |= self.blocks("causal_encoder.blocks", *tok, "token_causal_attn", "token_cross_attn")
        self.tok |= self.norm("causal_encoder.ln_vision", width) | self.norm("causal_encoder.norm", width)
        self.tok |= self.linear("encode_task_layer.0", width, width) | self.linear("encode_task_layer.2", dim, width)
        self.tok |= {"quantize.embedding.weight": self.fresh(codes, dim)} | self.linear("vit_proj", 9, width)
        self.dec = {name: self.fresh(1, patches, dec[0]) for name in ("pos_embed", "query_embed")}
        self.dec |= self.linear("in_proj", dec[0], dim) | self.norm("norm", dec[0])
        self.dec |= self.blocks("blocks", *dec, "self_attn", "cross_attn") | self.linear("unet_proj", 3, features)
        self.dec |= self.linear("decode_task_layer.0", dec[0], dec[0])
        self.dec |= self.linear("decode_task_layer.2", features, dec[0])

    def fresh(self, *shape):
        return torch.randn(shape, generator=self.generator) * 0.2

    def linear(self, name, out, into):
        return {f"{name}.weight": self.fresh(out, into), f"{name}.bias": self.fresh(out)}

    def norm(self, name, width):
        return {f"{name}.weight": self.fresh(width), f"{name}.bias": self.fresh(width)}

    def blocks(self, name, width, depth, hidden, own, cross=""):
        found = {}
        for block in (f"{name}.{i}" for i in range(depth)):
            found |= self.linear(f"{block}.mlp.fc1", hidden, width) | self.linear(f"{block}.mlp.fc2", width, hidden)
            found |= self.linear(f"{block}.{own}.qkv", 3 * width, width) | self.linear(
                f"{block}.{own}.proj", width, width
            )
            for norm in ("norm0", "norm1", "norm2") if cross else ("norm1", "norm2"):
                found |= self.norm(f"{block}.{norm}", width)
            for part in ("query", "key", "value", "proj") if cross else ():
                found |= self.linear(f"{block}.{cross}.{part}", width, width)
            if not cross:  # EVA: no bias of keys
                del found[f"{block}.{own}.qkv.bias"]
                found |= {f"{block}.{own}.{part}_bias": self.fresh(width) for part in "qv"}
        return found

    def save(self, folder):
        folder.mkdir(parents=True)
        torch.save(self.eva, folder / "eva_vitg_psz14.bin")
        torch.save(self.tok, folder / "tokenizer_encoder.bin")
        torch.save(self.dec, folder / "tokenizer_decoder.bin")
        return folder

    def used(self):
        """What tokens and features depend on, behind the file's part."""
        whole = {f"{part}.{name}": x for part in ("eva", "tok", "dec") for name, x in getattr(self, part).items()}
        unused = ("eva.norm.", "eva.head.", "tok.vit_proj.", "dec.unet_proj.")
        return {name: x for name, x in whole.items() if not name.startswith(unused)}


# Eleven blocks: numbers of two digits. The decoder is of a width, depth and heads of its own.
LAVIT = {"eva": (24, 1, 31), "tok": (24, 11, 17), "dec": (20, 2, 40), "patch": 4, "size": 12, "codes": 30, "dim": 5}
SAID = {
    "eva": {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 3, "mlp_ratio": 1.3},
    "tok": {"img_size": 12, "width": 24, "layers": 11, "heads": 2, "n_code": 30, "code_dim": 5},
    "dec": {"in_chans": 5, "embed_dim": 20, "depth": 2, "num_heads": 5},
    "decoder_out_dim": 24,
}


def test_lavit_of_other_sizes_is_opened_and_goes_back(tmp_path):
    theirs = Lavit(**LAVIT, features=24)
    place = theirs.save(tmp_path / "low" / "visual_tokenizer")
    tokenizer = vqtok.load(tmp_path / "low", config=SAID)
    heads = tokenizer.features.blocks[0].attention.heads, tokenizer.merger.blocks[10].attention.heads
    assert (*heads, tokenizer.feature_decoder.blocks[1].cross_attention.heads) == (3, 2, 5)
    exported, used = adapters.export(tokenizer.inference_tensors(), "lavit_dynamic"), theirs.used()
    assert exported.keys() == used.keys()
    assert all(torch.equal(exported[name], used[name]) for name in used)
    for path in (place, place / "tokenizer_encoder.bin"):
        assert vqtok.load(path, config=SAID).fingerprint == tokenizer.fingerprint
    tokenizer.save(tmp_path / "model")
    assert vqtok.load(tmp_path / "model").fingerprint == tokenizer.fingerprint


def test_lavits_decoder_of_higher_resolution_is_meant_by_its_own_path_only(tmp_path):
    theirs = Lavit(**LAVIT, features=24)
    place = theirs.save(tmp_path / "visual_tokenizer")
    high = {name: x + 1 for name, x in theirs.dec.items() if not name.startswith("unet_proj")}
    high |= {"unet_proj_1.weight": torch.zeros(3, 24), "unet_attnpool.q_proj.weight": torch.zeros(24, 24)}
    torch.save(high, place / "highres_tokenizer_decoder.bin")
    for path, bias in {tmp_path: theirs.dec, place / "highres_tokenizer_decoder.bin": high}.items():
        decoder = vqtok.load(path, config=SAID).feature_decoder
        assert torch.equal(decoder.from_vectors.bias, bias["in_proj.bias"])


def test_lavit_learns_on(tmp_path):
    tokenizer = vqtok.load(Lavit(**LAVIT, features=24).save(tmp_path / "it"), config=SAID).train()
    out = tokenizer(torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1)))
    distance = (out.statistics["features"] - out.statistics["target"]).square().mean()
    (distance + out.quantized.losses["commitment"]).backward()
    learning = {name for name, x in tokenizer.named_parameters() if x.grad is not None and bool(x.grad.any())}
    assert {"selector.to_scores.weight", "merger.blocks.10.mlp.to_out.weight", "projection.to_out.weight"} <= learning
    assert {"feature_decoder.queries", "feature_decoder.positions"} <= learning
    assert not any(name.startswith("features.") for name in learning)


def test_lavit_without_its_heads_or_with_another_models_configuration_is_refused(tmp_path):
    place = Lavit(**LAVIT, features=24).save(tmp_path / "one")
    with pytest.raises(ConfigError, match="no tensor tells"):
        vqtok.load(place)
    wrong = SAID | {"tok": SAID["tok"] | {"n_code": 31}, "dec": SAID["dec"] | {"depth": 3}}
    with pytest.raises(MismatchError, match=r"tok.vocab_size is 31.*dec.depth is 3"):
        vqtok.load(place, config=wrong)
    with pytest.raises(ConfigError, match="heads of dec"):
        vqtok.load(place, config=SAID | {"dec": {"num_heads": 7}})


def test_lavit_of_its_published_width_needs_no_configuration():
    with torch.device("meta"):
        teacher = vqtok.build("lavit-dynamic")
    shapes = {name: tuple(x.shape) for name, x in teacher.inference_tensors().items()}
    theirs = {name: pair[0] for name, pair in invert(FAMILIES["lavit_dynamic"].rules, shapes).items()}
    changed_back = {"feature_decoder.positions", "feature_decoder.queries"}
    foreign = {theirs[name]: (1, *shape) if name in changed_back else shape for name, shape in shapes.items()}
    applied = apply(FAMILIES["lavit_dynamic"].rules, foreign)
    family = FAMILIES["lavit_dynamic"]
    described = family.architecture(Tensors(applied.tensors), {}, family.preprocess)
    assert described.model_copy(update={"preprocess": teacher.spec}) == teacher.card.architecture
    assert (described.preprocess.size, described.preprocess.multiple) == (224, 14)
    tensors = [name for name in foreign if name.startswith("tok.")]
    assert len(tensors) == 285 - 2  # and the linear layer into the language model, which is not ours
