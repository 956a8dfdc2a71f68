"""The panels and decision maps of the paper: what they ask for, their cells, their figures."""
