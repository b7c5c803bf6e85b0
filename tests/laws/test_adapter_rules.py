"""Laws of the tables of renames: they read both ways, nothing is lost or taken twice, every difference is said."""

import numpy as np
import pytest
import torch

import vqtok
from vqtok import adapters
from vqtok.adapters import FAMILIES
from vqtok.adapters.rules import CHANGES, Drop, Rename, Reshape, apply, changed, changed_shape, check, invert, unchanged
from vqtok.architecture import ModelCard, read_section
from vqtok.errors import ConfigError, InputError, MismatchError
from vqtok.loading import assemble

LEVELS = (
    Rename("down.{level}.block.{block}.{leaf:weight|bias}", "levels.{level}.blocks.{block}.{leaf:weight|bias}"),
    Rename("up.{depth:mirror}.{leaf:weight|bias}", "ups.{depth:mirror}.{leaf:weight|bias}"),
    Reshape("q.{i}.weight", "query.{i}.weight", "linear-to-conv"),
    Reshape("embed", "codebook", "transpose"),
    Drop("loss.*", "nobody's"),
)


def test_numbers_of_any_length_keep_their_place():
    shapes = {f"down.{i}.block.{j}.weight": (i + 1, j + 1) for i in (0, 9, 10, 11, 100) for j in (0, 10)}
    applied = apply(LEVELS, shapes)
    assert not applied.leftovers
    for name, source in applied.tensors.items():
        _, level, _, block, _ = name.split(".")
        assert source.name == f"down.{level}.block.{block}.weight"
        assert source.shape == (int(level) + 1, int(block) + 1)


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_mirrored_numbers_are_counted_from_the_other_end(count):
    applied = apply(LEVELS, {f"up.{i}.weight": (i,) for i in range(count)})
    assert [applied.tensors[f"ups.{i}.weight"].name for i in range(count)] == [
        f"up.{count - 1 - i}.weight" for i in range(count)
    ]
    back = invert(LEVELS, applied.tensors)
    assert {name: pair[0] for name, pair in back.items()} == {n: s.name for n, s in applied.tensors.items()}


def test_numbers_are_mirrored_together_over_all_rules():
    """The coarsest level has no upsampling; its absence must not shift the others."""
    rules = (
        Rename("up.{level:mirror}.block.weight", "levels.{level:mirror}.weight"),
        Rename("up.{level:mirror}.upsample.weight", "upsamples.{level:mirror}.weight"),
    )
    names = [*(f"up.{i}.block.weight" for i in range(3)), *(f"up.{i}.upsample.weight" for i in range(2))]
    applied = apply(rules, dict.fromkeys(names, (1,)))
    assert applied.tensors["upsamples.2.weight"].name == "up.0.upsample.weight"
    assert applied.tensors["upsamples.1.weight"].name == "up.1.upsample.weight"


@pytest.mark.parametrize(
    "name", ["down.00.block.0.weight", "down.-1.block.0.weight", "down.1.block.1.scale", "xdown.1"]
)
def test_names_that_only_look_alike_are_left_over(name):
    assert apply(LEVELS, {name: (1,)}).leftovers == (name,)


def test_numbers_that_begin_elsewhere_are_counted_from_there():
    rules = (Rename("blocks.{i:5+}.weight", "stack.{i}.weight"),)
    applied = apply(rules, {"blocks.5.weight": (1,), "blocks.12.weight": (2,), "blocks.4.weight": (3,)})
    assert {name: source.name for name, source in applied.tensors.items()} == {
        "stack.0.weight": "blocks.5.weight",
        "stack.7.weight": "blocks.12.weight",
    }
    assert applied.leftovers == ("blocks.4.weight",)
    assert invert(rules, applied.tensors) == {n: (s.name, "") for n, s in applied.tensors.items()}


def test_a_dot_is_a_dot():
    assert apply((Rename("a.b", "c"),), {"axb": (1,)}).leftovers == ("axb",)


def test_dropped_names_are_neither_taken_nor_left_over():
    assert apply(LEVELS, {"loss.a.b\n.c": (1,), "lossy": (1,)}) == ({}, ("lossy",))


def test_two_tensors_for_one_name_are_refused():
    rules = (Rename("a", "x"), Rename("b", "x"))
    with pytest.raises(MismatchError, match="one tensor for 'x', got 'a' and 'b'"):
        apply(rules, {"a": (1,), "b": (1,)})


SHAPES = {
    "linear-to-conv": (5, 3),
    "conv-to-linear": (5, 3, 1, 1),
    "transpose": (5, 3),
    "first": (1, 5, 3),
    "one-hot": (5, 3, 1, 1),
}


@pytest.mark.parametrize("change", ["", *CHANGES])
def test_changes_have_inverses_and_tell_their_shapes(change):
    x = torch.randn(SHAPES.get(change, (5, 3)))
    there = changed(x, change)
    assert tuple(there.shape) == changed_shape(tuple(x.shape), change)
    assert torch.equal(unchanged(there, change), x)
    assert set(SHAPES) == set(CHANGES)


def test_a_linear_layer_is_the_convolution_it_becomes():
    linear = torch.nn.Linear(3, 5)
    x = torch.randn(2, 3, 4, 4)
    conv = torch.nn.functional.conv2d(x, changed(linear.weight, "linear-to-conv"), linear.bias)
    torch.testing.assert_close(conv, linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def test_a_convolution_is_the_linear_layer_it_becomes():
    conv = torch.nn.Conv2d(3, 5, 1)
    x = torch.randn(2, 3, 4, 4)
    linear = torch.nn.functional.linear(x.permute(0, 2, 3, 1), changed(conv.weight, "conv-to-linear"), conv.bias)
    torch.testing.assert_close(linear.permute(0, 3, 1, 2), conv(x))


@pytest.mark.parametrize("change", ["one-hot", "conv-to-linear"])
def test_what_is_no_1x1_convolution_keeps_its_shape_and_will_not_fit(change):
    for shape in ((5, 3, 3, 3), (5, 3), (5,), ()):
        assert changed_shape(shape, change) == shape


def test_every_difference_is_said_at_once():
    shapes = {"down.0.block.0.weight": (2,), "embed": (3, 2), "what": (1,), "q.7.weight": (2, 2)}
    expected = {"levels.0.blocks.0.weight": (3,), "codebook": (2, 3), "levels.0.blocks.0.bias": (3,)}
    with pytest.raises(MismatchError) as caught:
        check(LEVELS, apply(LEVELS, shapes), expected, shapes)
    for words in (
        "but 4 differ",
        "missing 'down.0.block.0.bias'",
        "left over 'what' (1,)",
        "left over 'q.7.weight'",
        "'down.0.block.0.weight' of shape (2,) does not fit (3,)",
    ):
        assert words in str(caught.value)


def test_our_names_without_a_place_are_refused():
    with pytest.raises(ConfigError, match=r"nowhere\.weight"):
        invert(LEVELS, ["nowhere.weight"])


# Families ---------------------------------------------------------------------------------------------------------

CONV = {"channels": 32, "residual_blocks": 2, "z_channels": 8, "dim": 6, "vocab_size": 40}
SHAPED = {
    "attention at one level": {**CONV, "multipliers": [1, 2, 1], "attention_levels": [1]},
    "attention nowhere": {**CONV, "multipliers": [2, 1], "attention_levels": []},
    "twelve levels": {**CONV, "residual_blocks": 1, "multipliers": [1] * 12, "attention_levels": [11]},
    "twelve blocks": {**CONV, "residual_blocks": 12, "multipliers": [1, 1], "attention_levels": [0, 1]},
    "wide": {**CONV, "multipliers": [1, 3], "attention_levels": [1], "vocab_size": 6},
    "narrow groups": {**CONV, "channels": 12, "groups": 4, "multipliers": [1, 2], "attention_levels": []},
    "a wider stem": {**CONV, "multipliers": [1, 2], "attention_levels": [], "stem": 3},
    "no attention in the middle": {**CONV, "multipliers": [1, 2], "attention_levels": [], "middle_attention": False},
}
CONV_FAMILIES = ("taming_vqgan", "llamagen_vq", "hf_janus_vq", "diffusers_vqmodel")


@pytest.fixture
def hollow():
    def build(shape):
        with torch.device("meta"):
            return vqtok.build("vqgan-f16-1024", multiple=2 ** (len(shape["multipliers"]) - 1), **shape)

    return build


@pytest.mark.parametrize("family", CONV_FAMILIES)
@pytest.mark.parametrize("shape", SHAPED)
def test_what_is_exported_is_what_is_read(shape, family, hollow):
    """Names go out and come back, and the shapes alone say the whole configuration."""
    tokenizer = hollow(SHAPED[shape])
    ours = {name: tuple(x.shape) for name, x in tokenizer.inference_tensors().items()}
    theirs = {name: tuple(x.shape) for name, x in adapters.export(tokenizer.inference_tensors(), family).items()}
    applied = apply(FAMILIES[family].rules, theirs)
    check(FAMILIES[family].rules, applied, ours, theirs)
    stated = {"groups": SHAPED[shape].get("groups", 32)}
    section = adapters.conv_backbone.conv_network(adapters.family.Tensors(applied.tensors), "encoder", stated["groups"])
    assert section == tokenizer.card.architecture.encoder


@pytest.mark.parametrize("family", CONV_FAMILIES)
def test_a_family_is_told_from_its_names(family, hollow):
    tokenizer = hollow(SHAPED["attention at one level"])
    theirs = {name: tuple(x.shape) for name, x in adapters.export(tokenizer.inference_tensors(), family).items()}
    assert adapters.sniff.choose(FAMILIES, theirs).name == family
    inside = {f"module.a.{name}": shape for name, shape in theirs.items()} | {"lm_head.weight": (2, 2)}
    assert adapters.sniff.choose(FAMILIES, inside).name == family
    assert adapters.sniff.prefix_of(FAMILIES[family], [*inside]) == "module.a."


def test_names_of_nobody_are_refused():
    with pytest.raises(InputError, match="fit none"):
        adapters.sniff.choose(FAMILIES, {"conv.weight": (3, 3)})


def test_two_tokenizers_in_one_checkpoint_need_a_choice(hollow):
    theirs = adapters.export(hollow(SHAPED["wide"]).inference_tensors(), "taming_vqgan")
    both = {f"{prefix}.{name}": tuple(x.shape) for prefix in ("first", "second") for name, x in theirs.items()}
    with pytest.raises(ConfigError, match=r"first\., second\."):
        adapters.sniff.choose(FAMILIES, both)


def titok(direct):
    """Return a fresh TiTok, of the kind that makes pixels at once or of the one that goes through other codes."""
    trunk = {"width": 128, "depth": 1, "heads": 2, "patch": 8, "size": 32, "tokens": 6}
    pixels = {} if direct else {"pixel_codes": 10, "pixel_dim": 5, "pixel_channels": 32, "pixel_multipliers": [1] * 4}
    architecture = {
        "encoder": {"type": "titok", **trunk, "legacy": not direct},
        "quantizer": {"type": "vector", "dim": 12, "vocab_size": 20, "metric": "cosine"},
        "decoder": {"type": "titok-decoder", **trunk, **pixels},
        "preprocess": {"resize": "center", "size": 32, "multiple": 32, "low": 0.0, "exif": "ignore", "alpha": "keep"},
    }
    return assemble(read_section(ModelCard, {"architecture": architecture}, "test")).eval()


@pytest.mark.parametrize("direct", [False, True])
def test_a_row_of_tokens_goes_out_and_comes_back(direct, tmp_path):
    tokenizer = titok(direct)
    torch.save(adapters.export(tokenizer.inference_tensors(), "titok"), tmp_path / "x.bin")
    again = vqtok.load(tmp_path / "x.bin")
    assert again.card.architecture == tokenizer.card.architecture
    tokens = tokenizer.tokenize([np.full((40, 50, 3), value, np.uint8) for value in (0, 200)])
    assert tokens.grids.tolist() == [[1, 1, 6], [1, 1, 6]]
    assert np.array_equal(again.tokenize([np.full((40, 50, 3), v, np.uint8) for v in (0, 200)]).ids, tokens.ids)
    assert [image.size for image in tokenizer.detokenize(tokens)] == [(32, 32), (32, 32)]
    with pytest.raises(ConfigError, match="32 x 32"):
        tokenizer.encode(torch.zeros(1, 3, 64, 64))
    with pytest.raises(MismatchError, match="is_legacy"):
        vqtok.load(tmp_path / "x.bin", config={"vq_model": {"is_legacy": direct}})


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_table_is_well_made(family):
    from vqtok.adapters.rules import _PLACEHOLDER

    for rule in family.rules:
        if not isinstance(rule, Drop):
            names = [sorted(name for name, _ in _PLACEHOLDER.findall(x)) for x in (rule.foreign, rule.native)]
            assert names[0] == names[1], rule
        if isinstance(rule, Reshape):
            assert rule.change in CHANGES
    assert family.source
    assert family.words
