"""The one error that users meet: a sentence that names the culprit and the fix."""


class UserError(Exception):
    """Something the user can mend: a wrong config, a missing file, a damaged checkpoint.

    The commands print its message alone and end with exit code 2; any other exception is a bug
    and keeps its traceback.
    """
