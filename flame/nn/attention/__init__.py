"""Attention beyond `F.scaled_dot_product_attention`: scores changed by a function of the user's (`flex_attention`), sequences of
different lengths in one tensor (`varlen`)."""

from flame.nn.attention import flex_attention, varlen

__all__ = ["flex_attention", "varlen"]
