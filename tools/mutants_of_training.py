"""Mutants of what ridge, weights and single points do, of the differentiable `fit`, of Gaussian
processes and of the split into bugs and features, for `mutant_tables`.
"""

_SMOOTHER = ("tests/training/test_smoother.py",)
_SPLIT = ("tests/learning/test_split.py",)
_RIDGE = ("tests/training/test_ridge.py",)
_WEIGHTS = ("tests/training/test_sample_weight.py",)
_DIFFERENTIABLE = ("tests/training/test_differentiable_fit.py",)
_PROCESS = ("tests/training/test_gaussian_process.py",)

# File, name, text, what replaces it, by tests.
_TEXTS = {
    _SMOOTHER: [
        ("influence", "n for n - w_n", "weights / (n - weights))", "weights / n)"),
        (
            "influence",
            "the others stay",
            "change = -np.outer(alpha, weights / (n - weights))",
            "change = np.zeros((n, n))",
        ),
        ("influence", "not divided by q_nn", "along, inverse) / leverage", "along, inverse)"),
        (
            "influence",
            "the ridge of all points",
            "training.ridge * (n - weights)",
            "training.ridge * n * np.ones(len(weights))",
        ),
        (
            "influence",
            "ridge without its weight",
            "training.ridge * np.outer(weighed, weights)",
            "0 * np.outer(weighed, weights)",
        ),
        ("influence", "weight for its root", "root = np.sqrt(weights)", "root = weights"),
        (
            "influence",
            "residual without f0",
            "return y if self.predictor.initial is None else y - ",
            "return y if True else ",
        ),
        ("influence", "with the point twice", "outputs - self._as", "outputs + self._as"),
        (
            "influence",
            "leverage of the operator",
            "jnp.diagonal(self.weights)",
            "jnp.diagonal(self.operator)",
        ),
        ("smoother", "f0 counted twice", "return at_z - jnp.matmul(", "return at_z + jnp.matmul("),
        (
            "smoother",
            "f0 fades",
            "if loss.kind is Kind.CONSTANT:\n            return",
            "if False:\n            return",
        ),
        (
            "smoother",
            "ridge ignored, direct",
            "columns, dynamics, ridge, weights)",
            "columns, dynamics, 0.0, weights)",
        ),
        ("smoother", "ridge ignored, others", '"ridge": ridge,', '"ridge": 0.0,'),
        (
            "smoother",
            "weights ignored, direct",
            "columns, dynamics, ridge, weights)",
            "columns, dynamics, ridge)",
        ),
        ("smoother", "weights ignored, others", '"weights": weights}', '"weights": None}'),
    ],
    _SPLIT: [
        (
            "../learning/split",
            "crossed once",
            "initial - 2 * crossed + trained",
            "initial - crossed + trained",
        ),
        (
            "../learning/split",
            "no square of the change",
            "initial - 2 * crossed + trained",
            "initial - 2 * crossed",
        ),
        (
            "../learning/split",
            "slope not squared",
            "(1 + kernel.slope**2) / 2",
            "(1 + kernel.slope) / 2",
        ),
        (
            "../learning/split",
            "the mean keeps the start",
            "(dual + of_start, None)",
            "(dual, None)",
        ),
        (
            "../learning/split",
            "own of the other sign",
            "(-of_start, f.initial)",
            "(of_start, f.initial)",
        ),
        (
            "../learning/split",
            "weights not squared",
            "np.sum(np.square(weights), axis=1)",
            "np.sum(np.abs(weights), axis=1)",
        ),
        (
            "../learning/split",
            "lengths for squares",
            "shared = _squares(self.shared_gradient)\n        own",
            "shared = jnp.sqrt(_squares(self.shared_gradient))\n        own",
        ),
        ("../learning/split", "back is ahead", "back=-turning * cosine", "back=turning * cosine"),
        (
            "../learning/split",
            "no lengths of queries",
            " + squares * back",
            "",
        ),
        (
            "../learning/split",
            "another covariance",
            "nngp = _Gradients(along=gates / d,",
            "nngp = _Gradients(along=gates,",
        ),
    ],
    _RIDGE: [
        (
            "squared",
            "ridge for n ridge",
            "jnp.full(n, n * ridge, gram.dtype)",
            "jnp.full(n, ridge, gram.dtype)",
        ),
        (
            "squared",
            "ridge for n ridge, products",
            "jnp.asarray(n * ridge, residual.dtype)",
            "jnp.asarray(ridge, residual.dtype)",
        ),
        (
            "squared",
            "no ridge at finite times",
            "curvatures = eigenvalues / n + ridge\n    if isinstance",
            "curvatures = eigenvalues / n\n    if isinstance",
        ),
        ("descent", "no decay of the steps", "/ len(f0) - ridge * dual", "/ len(f0)"),
        ("descent", "decay of unscaled time", "- time * ridge * beta", "- ridge * beta"),
        ("minimum", "ridge twice", "gradient = ridge * dual - ", "gradient = 2 * ridge * dual - "),
        (
            "dynamics",
            "identity: no decay",
            "float(-np.expm1(-rate * dynamics.time) / rate)",
            "float(dynamics.time)",
        ),
        ("implicit_steps", "flow without its decay", "rate - equation.decay * (", "rate - 0 * ("),
    ],
    _WEIGHTS: [
        (
            "squared",
            "weights once",
            "dual_coef=scale_rows(root, found.dual_coef)",
            "dual_coef=found.dual_coef",
        ),
        (
            "squared",
            "weights for their roots",
            "root = jnp.sqrt(weights)\n        scaled",
            "root = weights\n        scaled",
        ),
        (
            "solve",
            "residual without weights",
            "scale_rows(self.root, self.y - self.f0)",
            "self.y - self.f0",
        ),
        ("solve", "identity without weights", "targets = scale_rows(weights, targets)", "pass"),
        ("solve", "mean over absent points", "fewer = fewer / fewer.mean()", "fewer = fewer / 1.0"),
        (
            "minimum",
            "minimum without weights",
            "shares = weights / len(y)",
            "shares = jnp.ones_like(weights) / len(y)",
        ),
        (
            "descent",
            "steps without weights",
            "scale_rows(weights, force(outputs))",
            "force(outputs)",
        ),
        ("implicit", "flow without weights", "v if weights is None else weights * v", "v"),
        ("fit", "not of mean one", "return weights / weights.mean()", "return weights"),
    ],
    _DIFFERENTIABLE: [
        (
            "dynamics",
            "traced identity: no decay",
            "done = -jnp.expm1(-rate * dynamics.time)",
            "done = rate * dynamics.time",
        ),
        (
            "differentiable",
            "duplicates do not move",
            "apart, otherwise=slope)",
            "apart)",
        ),
        (
            "differentiable",
            "no derivative in time",
            "by_residual + by_filter + by_matrix",
            "by_residual + by_matrix",
        ),
        (
            "differentiable",
            "targets stay",
            "change = by_residual + by_filter",
            "change = by_filter",
        ),
        (
            "differentiable",
            "minimum without the curvature",
            "return dual, (across - moved) / ridge",
            "return dual, -moved / ridge",
        ),
        (
            "differentiable",
            "ridge for n ridge",
            "gram + n * ridge * identity",
            "gram + ridge * identity",
        ),
        ("differentiable", "weights once", "return scale_rows(root, dual)", "return dual"),
        ("differentiable", "sum for mean", "f0, ridge, weights / n)", "f0, ridge, weights)"),
        (
            "minimum",
            "softmax: diagonal curvature",
            "scale_rows(outer, scaled - p * total)",
            "scale_rows(outer, scaled)",
        ),
    ],
    _PROCESS: [
        ("gaussian_process", "normalised once", "- outputs * normaliser", "- normaliser"),
        (
            "gaussian_process",
            "n log 2 pi",
            "n / 2 * np.log(2 * np.pi)",
            "n * np.log(2 * np.pi)",
        ),
        (
            "gaussian_process",
            "half of the determinant",
            "jnp.sum(jnp.log(jnp.diagonal(factor)))",
            "jnp.sum(jnp.log(jnp.diagonal(factor))) / 2",
        ),
        (
            "gaussian_process",
            "fit without its 1/2",
            "likelihood = -square / 2",
            "likelihood = -square",
        ),
        ("gaussian_process", "the prior grows", "between(z, z) - ", "between(z, z) + "),
        ("gaussian_process", "cone not squared", "(1 - slope) ** 2 * relu", "(1 - slope) * relu"),
        (
            "gaussian_process",
            "deviation for variance",
            "+ noise * jnp.eye(len(x))\n        found",
            "+ noise**2 * jnp.eye(len(x))\n        found",
        ),
    ],
}

#: The fields of `Mutant`.
TRAINING = [
    (name, f"training/{file}.py".replace("training/../", ""), old, new, tests)
    for tests, texts in _TEXTS.items()
    for file, name, old, new in texts
]
