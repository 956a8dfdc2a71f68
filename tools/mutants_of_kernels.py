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
        (
            "arc-cosine of half the angle",
            "1 - angle / math.pi, angle / math.pi",
            "1 - angle / (2 * math.pi), angle / math.pi",
        ),
        ("order 1 falls", "rest = _first_rest(angle)", "rest = -_first_rest(angle)"),
        ("order 2 without its 2", "(squares + 2 * product**2)", "(squares + product**2)"),
        ("order 2 grows once", "norms**2 * rest", "norms * rest"),
        (
            "the other side of a right angle",
            "sign = jnp.where(acute, 1, -1)",
            "sign = jnp.where(acute, 1, 1)",
        ),
        ("derivative of a sine", "moved * t * jnp.sin(t)", "moved * jnp.sin(t)"),
        ("derivative of order 2", "-4 * moved * jnp.sin(t)", "-2 * moved * jnp.sin(t)"),
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
