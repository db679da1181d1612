"""What holds for every test."""

from hypothesis import settings

# A time limit per example says how busy the machine is, nothing about the code.
settings.register_profile("weakly", deadline=None)
settings.load_profile("weakly")
