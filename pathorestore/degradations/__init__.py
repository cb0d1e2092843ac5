"""Degradations with exact labels: defocus, acquisition, stain, and the blind ones of super-resolution papers."""

from pathorestore.degradations.blind import BlindDegraded, degrade_blind
from pathorestore.degradations.blind_recipes import OneRound, Round, Shuffled, TwoRounds
from pathorestore.degradations.optical import Degraded, FocalStack, degrade, simulate_stack
from pathorestore.degradations.recipes import Parameters, Setting
from pathorestore.degradations.stain import RandStainNA, StainStatistics, hed_jitter

__all__ = [
    "BlindDegraded",
    "Degraded",
    "FocalStack",
    "OneRound",
    "Parameters",
    "RandStainNA",
    "Round",
    "Setting",
    "Shuffled",
    "StainStatistics",
    "TwoRounds",
    "degrade",
    "degrade_blind",
    "hed_jitter",
    "simulate_stack",
]
