"""Training: one explicit loop, driven by small stage tasks."""
