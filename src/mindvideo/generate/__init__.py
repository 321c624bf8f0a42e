"""Sampling with adversarial guidance."""
