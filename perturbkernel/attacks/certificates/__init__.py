"""Sizes within which no attack succeeds, proved: Taylor expansions with bounded remainders."""

from perturbkernel.attacks.certificates.certified_size import CertifiedSize as CertifiedSize
from perturbkernel.attacks.certificates.certified_size import certified_size as certified_size
