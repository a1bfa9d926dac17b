"""The mathematics: what is counted, the forms of the laws, their fits, their health. No files, no torch."""
