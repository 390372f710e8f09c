"""OpenMP is not used; flame has threads of its own."""

from __future__ import annotations


def is_available() -> bool:
    return False
