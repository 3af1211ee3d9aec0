"""What holds for all tests."""

from hypothesis import settings

# A machine that is busy with something else is slow, not wrong. Built on the profile that
# hypothesis chose: where CI is set, one that tries the same examples in every run.
settings.register_profile("unhurried", parent=settings(), deadline=None)
settings.load_profile("unhurried")
