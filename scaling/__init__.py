"""From tables of runs to laws, forecasts and plans."""
import runtime  # noqa: F401    first: it says what is missing here
