"""What a model is, as data: the sections of ``config.json`` and the closed tables from section to class.

A configuration can only name what stands in this package; nothing in it is an import path.
"""

from vqtok.architecture.models import FORMAT as FORMAT
from vqtok.architecture.models import AnyArchitecture as AnyArchitecture
from vqtok.architecture.models import Architecture as Architecture
from vqtok.architecture.models import DynamicArchitecture as DynamicArchitecture
from vqtok.architecture.models import HierarchicalArchitecture as HierarchicalArchitecture
from vqtok.architecture.models import ModelCard as ModelCard
from vqtok.architecture.models import override as override
from vqtok.architecture.networks import DECODERS as DECODERS
from vqtok.architecture.networks import ENCODERS as ENCODERS
from vqtok.architecture.networks import AbsentNetwork as AbsentNetwork
from vqtok.architecture.networks import ConvNetwork as ConvNetwork
from vqtok.architecture.networks import CosmosNetwork as CosmosNetwork
from vqtok.architecture.networks import DvaeNetwork as DvaeNetwork
from vqtok.architecture.networks import Emu3Network as Emu3Network
from vqtok.architecture.networks import MaskgitNetwork as MaskgitNetwork
from vqtok.architecture.networks import MergerSection as MergerSection
from vqtok.architecture.networks import SmallNetwork as SmallNetwork
from vqtok.architecture.networks import TeacherSection as TeacherSection
from vqtok.architecture.networks import TitokDecoderNetwork as TitokDecoderNetwork
from vqtok.architecture.networks import TitokNetwork as TitokNetwork
from vqtok.architecture.networks import TransformerSection as TransformerSection
from vqtok.architecture.networks import VitNetwork as VitNetwork
from vqtok.architecture.networks import Vqvae2NetworkSection as Vqvae2NetworkSection
from vqtok.architecture.quantizers import BinarySphericalQuantizerSection as BinarySphericalQuantizerSection
from vqtok.architecture.quantizers import EmaQuantizerSection as EmaQuantizerSection
from vqtok.architecture.quantizers import FiniteScalarQuantizerSection as FiniteScalarQuantizerSection
from vqtok.architecture.quantizers import GumbelQuantizerSection as GumbelQuantizerSection
from vqtok.architecture.quantizers import IndexBackpropagationQuantizerSection as IndexBackpropagationQuantizerSection
from vqtok.architecture.quantizers import LookupFreeQuantizerSection as LookupFreeQuantizerSection
from vqtok.architecture.quantizers import ProductQuantizerSection as ProductQuantizerSection
from vqtok.architecture.quantizers import ResidualQuantizerSection as ResidualQuantizerSection
from vqtok.architecture.quantizers import SimQuantizerSection as SimQuantizerSection
from vqtok.architecture.quantizers import VectorQuantizerSection as VectorQuantizerSection
from vqtok.architecture.quantizers import build_quantizer as build_quantizer
from vqtok.architecture.section import Section as Section
from vqtok.architecture.section import arguments as arguments
from vqtok.architecture.section import described as described
from vqtok.architecture.section import read_section as read_section
