"""A static report from a run folder's files."""
