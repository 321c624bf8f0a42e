"""The embedded foundation kit: what its parts can do, measured."""
