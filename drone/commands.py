"""Commands that a message advises, as the user can type them in the project's folder."""

import shlex


def command(job: str, *arguments: object, **flags: object) -> str:
    """Returns the command line of a job, quoted for the shell.

    Args:
        job: Name of its file in ray_jobs/, without the suffix.
        arguments: Arguments without a flag, such as a preset.
        flags: Value by flag, with underscores for dashes. True is a flag alone, a list or tuple
            several values; None and False leave the flag out.
    """
    words = ["python", f"ray_jobs/{job}.py", *(quoted(argument) for argument in arguments)]
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif isinstance(value, (list, tuple)):
            # What starts with a dash would be read as a flag.
            paths = [f"./{path}" if str(path).startswith("-") else path for path in value]
            words += [flag, *map(quoted, paths)]
        elif str(value).startswith("-"):
            words.append(f"{flag}={quoted(value)}")
        elif value is not None and value is not False:
            words += [flag, quoted(value)]
    return " ".join(words)


def quoted(argument: object) -> str:
    r"""Returns an argument as a word of the shell; control characters become escapes: $'a\x0a'."""
    text = str(argument)
    if text.isprintable():
        return shlex.quote(text)
    try:
        content = text.encode("utf-8", "surrogateescape")  # As the names of files are encoded.
    except UnicodeEncodeError:
        content = text.encode("utf-8", "replace")  # No file has such a name.
    letters = map(chr, content)
    escaped = (
        letter if letter.isascii() and letter.isprintable() and letter not in "\\'"
        else f"\\x{ord(letter):02x}"
        for letter in letters
    )  # fmt: skip
    return f"$'{''.join(escaped)}'"
