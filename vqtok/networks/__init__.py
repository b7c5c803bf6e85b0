"""Encoders and decoders: pixels [B, 3, H, W] to latents [B, D, h, w] and back. They know no quantizer."""

from vqtok.networks.conv import AbsentDecoder as AbsentDecoder
from vqtok.networks.conv import ConvDecoder as ConvDecoder
from vqtok.networks.conv import ConvEncoder as ConvEncoder
from vqtok.networks.discriminators import PatchDiscriminator as PatchDiscriminator
from vqtok.networks.discriminators import StyleDiscriminator as StyleDiscriminator
from vqtok.networks.dvae import DvaeDecoder as DvaeDecoder
from vqtok.networks.dvae import DvaeEncoder as DvaeEncoder
from vqtok.networks.emu3 import Emu3Decoder as Emu3Decoder
from vqtok.networks.emu3 import Emu3Encoder as Emu3Encoder
from vqtok.networks.eva import EvaVit as EvaVit
from vqtok.networks.eva import PatchTokens as PatchTokens
from vqtok.networks.feature_decoder import FeatureDecoder as FeatureDecoder
from vqtok.networks.magvit2 import Magvit2Decoder as Magvit2Decoder
from vqtok.networks.magvit2 import Magvit2Encoder as Magvit2Encoder
from vqtok.networks.maskgit import MaskgitDecoder as MaskgitDecoder
from vqtok.networks.maskgit import MaskgitEncoder as MaskgitEncoder
from vqtok.networks.merger import Merger as Merger
from vqtok.networks.reach import reach as reach
from vqtok.networks.selector import Selector as Selector
from vqtok.networks.small import SmallDecoder as SmallDecoder
from vqtok.networks.small import SmallEncoder as SmallEncoder
from vqtok.networks.titok import TitokDecoder as TitokDecoder
from vqtok.networks.titok import TitokEncoder as TitokEncoder
from vqtok.networks.vit import VitDecoder as VitDecoder
from vqtok.networks.vit import VitEncoder as VitEncoder
from vqtok.networks.vqvae2 import Vqvae2Network as Vqvae2Network
