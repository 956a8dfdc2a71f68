"""What every kernel and solver runs on: tiled sums, memory, devices, Krylov methods."""
