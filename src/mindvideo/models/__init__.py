"""Masked brain model, fMRI encoder, inflated video UNet, and the frozen foundation parts."""
