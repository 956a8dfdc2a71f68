"""Mutants of the baselines, of sums and products, and of kernels of the user's own networks, for
`mutant_tables`.
"""

# Name, text, what replaces it, by file below `kernels/`, whose tests have its name.
_TEXTS = {
    "baselines": [
        ("RBF without its 1/2", "self.length_scale) / 2)", "self.length_scale))"),
        (
            "RBF: slope of the tail",
            "math.exp(-0.5) / self.length_scale",
            "math.exp(-1.0) / self.length_scale",
        ),
        (
            "Laplace in the other norm",
            'distances if self.norm == "l2"',
            'distances if self.norm == "l1"',
        ),
        ("l1 is no steeper than l2", "x.shape[1] ** 0.5", "1.0"),
        (
            "bound does not add up",
            "ones = xp.ones(z.shape[0], coef.dtype)",
            "ones = xp.ones(z.shape[0], coef.dtype) / len(coef)",
        ),
        ("arc-cosine of half the angle", "1 - theta / math.pi", "1 - theta / (2 * math.pi)"),
        ("order 1 is odd", "odd + norms * even", "odd - norms * even"),
        ("order 2 without its 2", "(1 + 2 * cosine**2)", "(1 + cosine**2)"),
        ("order 2 grows once", "norms**2 * angular", "norms * angular"),
        (
            "parallel to zero",
            "jnp.where(both_zero, math.pi / 2, theta)",
            "jnp.where(both_zero, 0, theta)",
        ),
    ],
    "algebra": [
        ("a sum is a product", "operator.add, self._tiles", "operator.mul, self._tiles"),
        ("a product is a sum", "operator.mul, self._tiles", "operator.add, self._tiles"),
        ("factor ignored", "return self.factor * tile", "return tile"),
        (
            "factor of the bound ignored",
            "return self.factor * self.parts[0].gradient_bound",
            "return self.parts[0].gradient_bound",
        ),
        ("the last factor", "_checked_factor(factor * first.factor)", "_checked_factor(factor)"),
        ("bound of the first part", "functools.reduce(operator.add, bounds)", "bounds[0]"),
        ("memory of the laxest", "min(given, default=None)", "max(given, default=None)"),
        ("one part at a time", "sum(pairs) + _COMBINED", "max(pairs) + _COMBINED"),
    ],
    "empirical": [
        ("sum over outputs, tiles", "return total / outputs", "return total"),
        ("sum over outputs, passes", ".sum(axis=0) / len(outputs)", ".sum(axis=0)"),
        ("always the first output", "values[:, self.output : self.output + 1]", "values[:, :1]"),
        ("passes for many columns", "(m + n) <= m * n", "(m + n) >= m * n"),
        (
            "columns not told apart",
            "return _each(one_column, weights).T",
            "return _each(one_column, weights)",
        ),
    ],
    "network": [
        (
            "parameters move backwards",
            "leaf.astype(dtype) + step.astype(dtype)",
            "leaf.astype(dtype) - step.astype(dtype)",
        ),
        ("networks may mix rows", "    if mixed:", "    if False:"),
    ],
}

#: The fields of `Mutant`.
KERNELS = [
    (name, f"kernels/{file}.py", old, new, (f"tests/kernels/test_{tests}.py",))
    for file, texts in _TEXTS.items()
    for tests in [{"network": "empirical"}.get(file, file)]
    for name, old, new in texts
]
