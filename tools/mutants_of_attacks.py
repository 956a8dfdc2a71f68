"""Mutants of certificates, label flips, Auto-PGD and robust accuracy, for `mutant_tables`."""

_CERTIFIED = "tests/attacks/test_certified.py"
_FLIPS = ("tests/attacks/test_flips.py",)
_APGD = ("tests/attacks/test_apgd.py",)
_ROBUST = ("tests/attacks/test_robust_accuracy.py",)

# Name, text, what replaces it, by file below `attacks/`.
_TEXTS = {
    "certificates/certified_size.py": [
        ("targets ignored", "if targets is not None:\n        size", "if False:\n        size"),
        ("a size is not within itself", "(size >= wanted", "(size > wanted"),
        ("wrong decisions stand at 0", " & (size > 0)", ""),
        ("cone twice as steep", "(1 - kernel.slope) ** 2 / (2 * np.pi)", "1 / np.pi"),
        ("linf is as long as l2", 'np.sqrt(d) if norm == "linf" else 1.0', "1.0"),
        ("f0 before and after alike", "float(np.finfo(given.dtype).eps)", "0.0"),
    ],
    "certificates/radius.py": [
        ("no curvature", "expansion = slope * size + q * size**2 / 2", "expansion = slope * size"),
        ("curvature without its 1/2", "q * size**2 / 2", "q * size**2"),
        ("no remainder", " + remainders.sum() + self.others", " + self.others"),
        ("margin grows for loses", "row, -signs[k], norm", "row, signs[k], norm"),
        (
            "last rival only",
            "return jnp.minimum(least, size)",
            "return size",
        ),
        ("rounding not taken off", "jnp.abs(outputs) - rounding", "jnp.abs(outputs)"),
        ("lipschitz ignored", "total = row.lipschitz * size", "total = 0 * size"),
        (
            "Sigma not divided by d",
            "row.initial.root * query.root / d",
            "row.initial.root * query.root",
        ),
    ],
    "certificates/width.py": [
        (
            "all perturbations for the price of one",
            "wide.level + d * jnp.log1p(_SHARES)",
            "wide.level + 0 * jnp.log1p(_SHARES)",
        ),
        ("neurons in place of pairs", "jnp.asarray(width) / 2,", "jnp.asarray(width) / 1,"),
        (
            "gates that do harm from one side only",
            "factor > change, 1, 2)",
            "factor > change, 1, 1)",
        ),
    ],
    "certificates/points.py": [
        ("angle is its sine", "angle = jnp.arcsin(sine)", "angle = sine"),
        ("speed of the centre", "jnp.maximum(query.length - distance, 0)", "query.length"),
        ("third derivative without 2", "third = (cubic + 2) * ", "third = cubic * "),
        ("no product of changes", "of_order_1 += speed * slope", "of_order_1 += 0 * slope"),
        ("second times slope once", "3 * second * slope", "second * slope"),
        ("away from x for toward", "coef * seen.factor > 0", "coef * seen.factor < 0"),
        ("1/6 is 1/24", "third / 6 * distance", "third / 24 * distance"),
    ],
    "certificates/expansion.py": [
        ("gradient toward z", "on_z=-jnp.sum(moving", "on_z=jnp.sum(moving"),
        (
            "trace of the other sign",
            "identity=-jnp.sum(round_cone)",
            "identity=jnp.sum(round_cone)",
        ),
        ("own without its 2", "own_of_length = 2 * turn**3", "own_of_length = turn**3"),
        ("Hessian of Sigma of rank n", "identity=jnp.sum(lifted)", "identity=0 * jnp.sum(lifted)"),
        ("not symmetric", "total + across + across.T", "total + 2 * across"),
    ],
    "certificates/quadratic.py": [
        ("8-norm without its root", "total ** (1 / 8)", "total ** (1 / 4)"),
        (
            "diagonal only",
            "entry = jnp.abs(whole).max()",
            "entry = jnp.abs(jnp.diagonal(whole)).max()",
        ),
        (
            "d times the least weight",
            "trace = jnp.sum(weights)",
            "trace = len(weights) * jnp.min(weights)",
        ),
        ("identity forgotten", "whole = rest + identity", "whole = rest + 0 * identity"),
    ],
    "flips.py": [
        ("a flip moves f once", "gains = 2 * np", "gains = np"),
        ("f0 forgotten", "outputs = start + w @ y\n    decision", "outputs = w @ y\n    decision"),
        ("helpful flips count", "np.maximum(contributions, 0)", "np.abs(contributions)"),
        ("least first", "np.argsort(-harm.gains", "np.argsort(harm.gains"),
        ("a tie is no change", "np.sum(margins > 0, axis=1)", "np.sum(margins >= 0, axis=1)"),
        ("harm without its other half", "(w * sign + absolute)", "w * sign"),
        ("labels of the rival gain", "is_decision - (labels", "is_decision + (labels"),
        ("labels 0 and 1", "gains = height * (", "gains = ("),
        ("rival of most flips", "b.flips < a.flips", "b.flips > a.flips"),
        (
            "relabelled backwards",
            "weights[changed] > 0",
            "weights[changed] < 0",
        ),
    ],
    "ascent.py": [
        (
            "halved where it rises",
            "few = of * rises < wanted * since",
            "few = of * rises > wanted * since",
        ),
        ("three steps of five", "_RISES = 3, 4", "_RISES = 3, 5"),
        (
            "never halved",
            "jnp.where(halves[:, None], pace.length / 2",
            "jnp.where(halves[:, None], pace.length",
        ),
        ("goes on where it is", "where_rows(halves, best, climb.delta)", "climb.delta"),
        (
            "gradient of another point",
            "where_rows(halves, gradient, here.gradient)",
            "here.gradient",
        ),
        (
            "momentum backwards",
            "(1 - _STEP) * (origin - before)",
            "(1 - _STEP) * (before - origin)",
        ),
        ("halved twice in a row", "stalled = ~pace.halved & (", "stalled = ("),
        ("rises of all steps", "rises=jnp.where(checkpoint, 0, rises)", "rises=rises"),
        ("first step half as long", "length=2 * longest_step(", "length=longest_step("),
        ("the last iterate", "better = here.gain > climb.largest", "better = here.gain > -jnp.inf"),
    ],
    "robust_accuracy.py": [
        ("wrong, then right again", "right = right & _right(", "right = _right("),
        ("the smallest size is not enough", "(least > size)", "(least >= size)"),
        ("a tie is right", "asked.memory) > 0)", "asked.memory) >= 0)"),
        ("no size 0", "np.unique(np.append(sizes, 0))", "np.unique(sizes)"),
        ("certified where wrong", " & (certified > 0)", ""),
        (
            "share of all inputs",
            "self.right[:, :, self.targets == label].mean(2)",
            "(self.right & (self.targets == label)).mean(2)",
        ),
    ],
}
_TESTS = {
    "certificates/certified_size.py": (_CERTIFIED,),
    "certificates/radius.py": (_CERTIFIED,),
    "certificates/width.py": ("tests/attacks/test_certified_width.py",),
    "certificates/points.py": (_CERTIFIED, "-k", "remainders or turns or third or rest_of"),
    "certificates/expansion.py": (_CERTIFIED, "-k", "hessian or rest_of"),
    "certificates/quadratic.py": (_CERTIFIED, "-k", "quadratic or smallest_attack"),
    "flips.py": _FLIPS,
    "ascent.py": _APGD,
    "robust_accuracy.py": _ROBUST,
}

#: The fields of `Mutant`.
ATTACKS = [
    (name, f"attacks/{file}", old, new, _TESTS[file])
    for file, texts in _TEXTS.items()
    for name, old, new in texts
]
