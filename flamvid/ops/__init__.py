"""The operations at the heart of the model: PyTorch references, and kernels where they load."""

from flamvid.ops.attention import attention, attention_backend
from flamvid.ops.kernels import OPERATIONS, Implementation, implementation, load
from flamvid.ops.linear import linear
from flamvid.ops.linear_int8 import GROUP, Int8, dequantise_int8, linear_int8, quantise_int8
from flamvid.ops.media_attention import media_attention
from flamvid.ops.media_index import Attend, media_index

__all__ = [
    "GROUP",
    "OPERATIONS",
    "Attend",
    "Implementation",
    "Int8",
    "attention",
    "attention_backend",
    "dequantise_int8",
    "implementation",
    "linear",
    "linear_int8",
    "load",
    "media_attention",
    "media_index",
    "quantise_int8",
]

load()
