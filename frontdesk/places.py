"""Where an unexpected error happened, without what was sent."""

from traceback import extract_tb


def place_of(error: BaseException) -> str:
    """Return an error's class, and file, line and function of its last frames.

    An exception's text, and the values around it, may hold what a visitor typed.
    """
    frames = extract_tb(error.__traceback__)[-6:]
    places = (f"{f.filename.rpartition('/')[2]}:{f.lineno} {f.name}" for f in frames)
    return f"{type(error).__name__} at {' > '.join(places)}"
