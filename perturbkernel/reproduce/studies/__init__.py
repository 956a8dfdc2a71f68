"""Studies beyond the paper's panels, a folder each: width, architectures, carriers, frontier."""
