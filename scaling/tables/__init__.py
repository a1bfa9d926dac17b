"""CSV files, run directories and other projects' logs, as columns of numbers that say what was left out."""
