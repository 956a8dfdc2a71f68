"""What a misspelt word was meant to be, and statuses: "ok", or in words what a solver met."""

from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], most: int = 1) -> str:
    """`; did you mean ...?`, for a word that is none of the known ones, with at most so many that
    contain it or are near; nothing where none is.

    Example:
        >>> did_you_mean("logisitc", ["squared", "logistic"])
        '; did you mean logistic?'
        >>> did_you_mean("hinge", ["squared", "logistic"])
        ''
    """
    import difflib  # seldom needed

    known = list(known)
    near = [other for other in known if word and word in other]
    near = near or difflib.get_close_matches(word, known, n=most)
    return f"; did you mean {' or '.join(near[:most])}?" if near else ""


def joined(*statuses: str) -> str:
    """What several solvers met, each thing once; "ok" where all of them are.

    Example:
        >>> joined("ok", "ok"), joined("singular", "ok", "stopped early", "singular")
        ('ok', 'singular; stopped early')
    """
    met = [status for status in statuses if status != "ok"]
    once = dict.fromkeys(met)
    return "; ".join(once) or "ok"


def about(what: str, status: str) -> str:
    """A status that names what was computed; "ok" stays.

    Example:
        >>> about("the mean", "ok"), about("the mean", "stopped early")
        ('ok', 'the mean: stopped early')
    """
    if status == "ok":
        return status
    return f"{what}: {status}"
