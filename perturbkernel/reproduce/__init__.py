"""The paper's experiments and studies around them, from independent cells of work."""
