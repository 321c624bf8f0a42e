"""Readers, voxel selection and the prepared store."""
