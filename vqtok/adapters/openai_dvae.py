"""OpenAI's discrete VAE of DALL-E (Ramesh et al. 2021): two files, whole modules or their state dicts.

Behind ``encoder.`` and ``decoder.``, which the files' places give. The decoder's first convolution is of a one-hot map:
its weight is the codebook.
"""

from __future__ import annotations

from vqtok.adapters.rules import Rename, Reshape, Rule

_NET = "{net:encoder|decoder}"
_THEIRS, _OURS = f"{_NET}.blocks.group_{{group:1+}}.block_{{block:1+}}", f"{_NET}.groups.{{group}}.{{block}}"
_LETTERS = {"w": "weight", "b": "bias"}

RULES: tuple[Rule, ...] = (
    *(
        row
        for letter, word in _LETTERS.items()
        for row in (
            Rename(f"encoder.blocks.input.{letter}", f"encoder.conv_in.{word}"),
            Rename(f"{_NET}.blocks.output.conv.{letter}", f"{_NET}.conv_out.{word}"),
            Rename(f"{_THEIRS}.id_path.{letter}", f"{_OURS}.shortcut.{word}"),
            Rename(f"{_THEIRS}.res_path.conv_{{conv:1+}}.{letter}", f"{_OURS}.convs.{{conv}}.{word}"),
        )
    ),
    Reshape("decoder.blocks.input.w", "quantizer.codebook", "one-hot"),
    Rename("decoder.blocks.input.b", "decoder.bias"),
)
PARTS = (
    {"encoder.pkl": "encoder.", "decoder.pkl": "decoder."},
    {"encoder_state_dict.pt": "encoder.", "decoder_state_dict.pt": "decoder."},
)
