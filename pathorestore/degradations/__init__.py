"""Degradations with exact labels: defocus, acquisition, stain."""

from pathorestore.degradations.optical import Degraded, FocalStack, degrade, simulate_stack
from pathorestore.degradations.recipes import Parameters, Setting
from pathorestore.degradations.stain import RandStainNA, StainStatistics, hed_jitter

__all__ = ["Degraded", "FocalStack", "Parameters", "RandStainNA", "Setting", "StainStatistics", "degrade", "hed_jitter", "simulate_stack"]
