"""The command `perturbkernel run`."""
