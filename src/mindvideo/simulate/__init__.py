"""Drawn films, a brain whose tuning is known, and its recordings."""
