"""Scores, controls and statistics."""
