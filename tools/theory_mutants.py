"""Mutants of the theory's smaller modules, and of what is said of them: (name, old, new) each, or
with the file before and the tests behind. `mutant_tables` says what becomes of them.
"""

LABELS = [
    (
        "systematic part dropped",
        "return np.abs(self.systematic) + self.radius",
        "return self.radius",
    ),
    (
        "radius for one point",
        "log = np.log(2 * points / delta)\n    radius",
        "log = np.log(2 / delta)\n    radius",
    ),
    ("balanced without its 2", "2 * n * np.maximum(rest_square", "n * np.maximum(rest_square"),
]
LINEAR = [
    (
        "no absolute values",
        "np.abs(queries_of_tile @ r[part].T + kernel",
        "(queries_of_tile @ r[part].T + kernel",
    ),
    ("no bias in the error", "r[part].T + kernel.train_bias)", "r[part].T)"),
    (
        "half of the angle",
        "cone_slope(kernel) * turned * size",
        "cone_slope(kernel) * turned * size / 2",
    ),
    ("angle not in units of sqrt(d)", "np.arctan(lengths / root)", "np.arctan(lengths / root**2)"),
    ("Phi without its angle", "cone_slope(kernel) * angles", "0 * queries"),
    ("no offset", "float(kernel.train_bias * coef.sum())", "0.0"),
    ("error ignored", "np.abs(output) > error + rounding", "np.abs(output) > rounding"),
    ("rounding ignored", "np.abs(output) > error + rounding", "np.abs(output) > error"),
    ("width costs nothing", "cheapest(failure, certified, delta)", "certified"),
    (
        "delta for every point",
        "cheapest(failure, certified, delta)",
        "certified & (failure <= delta)",
    ),
    ("time of one point", "size.mean() * len(coef)", "size.mean()"),
    ("labels of g lost", "r, np.sign(coef), z)", "r, np.sign(size), z)"),
]
SCALING = [
    ("noise of all points", "distance**2 + d / n", "distance**2 + d"),
    ("distance, not its square", "return distance**2 / length", "return distance / length"),
    ("no M^4 + 2 M^2", "(distance**2 + 1) ** 2 - 1 + d", "d"),
    ("trained biases cost nothing", "square = square + 1", "square = square + 0"),
    ("balanced targets pay", 'train_bias and targets == "coin_flip"', "train_bias"),
    ("another curve", "size / np.hypot(size, critical)", "size / (size + critical)"),
]
_DIAGNOSED = ("tests/learning/test_linearity.py",)
LINEARITY = [
    (
        "learning/linearity.py",
        "f is always linear",
        "return possible - found <= max(",
        "return possible - found <= 1 + max(",
        _DIAGNOSED,
    ),
    (
        "learning/linearity.py",
        "f is never linear",
        "return possible - found <= max(",
        "return possible - found <= -1 + max(",
        _DIAGNOSED,
    ),
    (
        "learning/linearity.py",
        "g is always linear",
        "return float(self.linear_g) >= _EVERYWHERE and float",
        "return float(self.linear_g) >= 0 or float",
        _DIAGNOSED,
    ),
    (
        "learning/linearity.py",
        "coefficients of another loss",
        "if not isinstance(g, KernelPredictor):",
        "if True:",
        _DIAGNOSED,
    ),
]
