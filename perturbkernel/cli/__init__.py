"""The command `perturbkernel`: a module for each subcommand."""
