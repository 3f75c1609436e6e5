"""Comparisons over several seeds, and their statistics."""
