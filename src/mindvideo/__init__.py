"""Reconstruct the video a person was watching from their fMRI."""
