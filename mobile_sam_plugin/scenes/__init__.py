"""Synthetic scenes with exact masks."""
