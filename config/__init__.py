"""What a run is: every setting, how config files and the command line set them, and ready-made runs."""
