"""Bugs and features: what each part of a perturbation does, and teaches."""
