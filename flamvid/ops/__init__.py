"""The operations at the heart of the model; kernels may replace the references here."""

from flamvid.ops.media import Attend, media_attention, media_index

__all__ = ["Attend", "media_attention", "media_index"]
