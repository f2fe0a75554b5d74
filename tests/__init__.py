import irlkit  # noqa: F401  # before torch, so that its idle threads sleep
