"""The operations at the heart of the model: PyTorch references, and kernels where they load."""

from flamvid.ops.kernels import Implementation, implementation, load
from flamvid.ops.media_attention import media_attention
from flamvid.ops.media_index import Attend, media_index

__all__ = ["Attend", "Implementation", "implementation", "media_attention", "media_index"]

load()
