from runtime.basics import exit_cleanly
from scaling.plots import main

exit_cleanly(main)
