"""Training a kernel model in closed form: losses, dynamics, solvers, and trained predictors."""
