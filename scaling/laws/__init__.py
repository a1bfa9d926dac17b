"""The mathematics: what is counted, the forms of the laws, their fits and their health. No files, no torch."""
