"""One directory per dataset: its prepare.py makes train.bin, val.bin and meta.json. common.py is shared."""
import runtime  # noqa: F401    first: it says what is missing here
