"""Procedural films, a brain whose tuning is known, and recordings in the layout of Wen 2018."""
