"""Families with something of their own: cross-attention, Q-Formers, encoder-decoders, experts, tiles."""

from .common import Family

ODD: dict[str, Family] = {}
