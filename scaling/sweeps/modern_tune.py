# python -m scaling.sweep scaling/sweeps/modern_tune.py   (10 minutes of one core of a Zen 3 server)
#
# The best learning rate of each arm of modern.py, on the same grid for all: untuned arms would measure the
# tuning. `python -m scaling.recipe.tune` wants one recipe; here the lowest loss of each arm counts.
from scaling.sweeps.modern import _arms
from scaling.sweeps.modern import base as _base

base = _base | dict(n_embd=32, budget=2e11)
runs = [dict(name=f"{arm}_{rate:g}", arm=arm, **change | dict(learning_rate=rate))
        for arm, change in _arms.items() for rate in (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)]
