"""Diffusion processes and the loops that run them over any denoiser."""
