"""What a misspelt word was meant to be."""

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
