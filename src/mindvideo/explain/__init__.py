"""Attention and occlusion maps."""
