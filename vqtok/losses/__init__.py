"""Losses of training, each one formula of one paper, unweighted; `Objective` puts the weights on.

Losses are scalars (float32, or float64 where inputs are), or per image where that is said. Nothing here downloads.
"""

from vqtok.losses.adversarial import ADVERSARIAL as ADVERSARIAL
from vqtok.losses.adversarial import AdversarialLoss as AdversarialLoss
from vqtok.losses.adversarial import LeCam as LeCam
from vqtok.losses.adversarial import adaptive_weight as adaptive_weight
from vqtok.losses.adversarial import r1_penalty as r1_penalty
from vqtok.losses.features import cosine_feature_loss as cosine_feature_loss
from vqtok.losses.features import keep_ratio_loss as keep_ratio_loss
from vqtok.losses.logit_laplace import logit_laplace as logit_laplace
from vqtok.losses.logit_laplace import logit_laplace_pixels as logit_laplace_pixels
from vqtok.losses.objective import Objective as Objective
from vqtok.losses.objective import WeightedLosses as WeightedLosses
from vqtok.losses.perceptual import FeaturePyramid as FeaturePyramid
from vqtok.losses.perceptual import PerceptualLoss as PerceptualLoss
from vqtok.losses.perceptual import perceptual as perceptual
from vqtok.losses.reconstruction import l1 as l1
from vqtok.losses.reconstruction import l2 as l2
