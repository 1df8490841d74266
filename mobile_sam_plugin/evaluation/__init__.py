"""Masks of a model measured against true ones, or against those of another model."""
