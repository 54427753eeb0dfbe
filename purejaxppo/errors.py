"""What the user is told, in one line."""


class UsageError(ValueError):
    """A request that cannot be met. The message is one line: the value, the rule, the fix."""


class HostEnvironmentError(RuntimeError):
    """An environment on the host crashed, raised, or gave a number that is not finite: the end of a run."""


class FailedSettingsError(RuntimeError):
    """Some settings of a sweep have failed; all others are trained."""


# What code of other people may raise. But KeyboardInterrupt, which is a person's.
OTHERS_ERRORS = (Exception, SystemExit, GeneratorExit)


def reason(error: BaseException) -> str:
    """What another's exception says, in one line."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def plural(count: int, noun: str) -> str:
    """ "1 seed", "2,000 seeds"."""
    several = "es" if noun.endswith(("s", "ch")) else "s"
    return f"{count:,} {noun}{'' if count == 1 else several}"
