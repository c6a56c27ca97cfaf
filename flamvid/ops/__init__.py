"""The operations at the heart of the model: PyTorch references, and kernels where they load."""

from flamvid.ops.attention import attention, attention_backend
from flamvid.ops.causal_attention import causal_attention, causal_is_compiled
from flamvid.ops.half import HalfLinear, halved, made_again
from flamvid.ops.kernels import (
    CUDA_OPERATIONS,
    OPERATIONS,
    Implementation,
    has_avx512,
    implementation,
    load,
)
from flamvid.ops.latent_attention import LATENT_STEP, latent_attention
from flamvid.ops.linear import DENSE, few_rows, linear, linear_gelu
from flamvid.ops.linear_int8 import GROUP, Int8, dequantise_int8, linear_int8, quantise_int8
from flamvid.ops.media_attention import check_index, media_attention
from flamvid.ops.media_index import Attend, media_index
from flamvid.ops.step import cross_few, feed_few, self_few
from flamvid.ops.token_loss import token_loss_

__all__ = [
    "CUDA_OPERATIONS",
    "DENSE",
    "GROUP",
    "LATENT_STEP",
    "OPERATIONS",
    "Attend",
    "HalfLinear",
    "Implementation",
    "Int8",
    "attention",
    "attention_backend",
    "causal_attention",
    "causal_is_compiled",
    "check_index",
    "cross_few",
    "dequantise_int8",
    "feed_few",
    "few_rows",
    "halved",
    "has_avx512",
    "implementation",
    "latent_attention",
    "linear",
    "linear_gelu",
    "linear_int8",
    "load",
    "made_again",
    "media_attention",
    "media_index",
    "quantise_int8",
    "self_few",
    "token_loss_",
]

load()
