"""An ablation: the study without each of its parts (paper Table 1, Fig. 6)."""

from mindvideo.ablation.runs import Ablation
from mindvideo.ablation.variants import Variant, choose_variants, list_variants
