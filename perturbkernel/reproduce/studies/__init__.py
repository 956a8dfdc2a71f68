"""Studies beyond the paper's panels, a folder each: width, architectures, carriers, bugs and
features, the frontier of robustness.
"""
