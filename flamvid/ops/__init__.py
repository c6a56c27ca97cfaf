"""The operations at the heart of the model: PyTorch references, and kernels where they load."""

from flamvid.ops.attention import attention, attention_backend
from flamvid.ops.kernels import OPERATIONS, Implementation, implementation, load
from flamvid.ops.media_attention import media_attention
from flamvid.ops.media_index import Attend, media_index

__all__ = [
    "OPERATIONS",
    "Attend",
    "Implementation",
    "attention",
    "attention_backend",
    "implementation",
    "load",
    "media_attention",
    "media_index",
]

load()
